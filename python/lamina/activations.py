"""The activations that kernels fuse, by name, and what a user may write to ask for one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = str | tuple[str, float] | Callable[[Tensor], Tensor] | None

# name -> (ATen's form, the parameter that a bare name stands for)
ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "none": (lambda z, _: z, 0.0),
    "relu": (lambda z, _: F.relu(z), 0.0),
    "threshold": (lambda z, t: F.threshold(z, t, 0.0), 0.0),
    "leaky_relu": (lambda z, slope: F.leaky_relu(z, slope), 0.01),
    "gelu": (lambda z, _: F.gelu(z), 0.0),
    "gelu_tanh": (lambda z, _: F.gelu(z, approximate="tanh"), 0.0),
    "silu": (lambda z, _: F.silu(z), 0.0),
    "tanh": (lambda z, _: torch.tanh(z), 0.0),
    "sigmoid": (lambda z, _: torch.sigmoid(z), 0.0),
}


def _relu(z: Tensor) -> Tensor:
    """relu of a fresh tensor; in place where no graph holds it.

    torch.jit.trace compares what it records with and without gradients.
    """
    return torch.relu(z) if z.requires_grad or torch.jit.is_tracing() else torch.relu_(z)


# How ATen finishes a small product, whose result is fresh: name -> function, None for nothing.
FINISH = {None: None, "relu": _relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}

BY_MASK = ("relu", "threshold", "leaky_relu")
BY_PREACTIVATION = ("gelu", "gelu_tanh", "silu")
BY_OUTPUT = ("tanh", "sigmoid")


def parse_activation(op: str, activation: Activation) -> tuple[str, float, Callable | None]:
    """(fused name, parameter, callable to run afterwards) of whatever the user wrote.

    Raises ValueError for an unknown name, TypeError for anything that is no activation.
    """
    if activation is None:
        return "none", 0.0, None
    if isinstance(activation, nn.Module):
        return _parse_module(activation)
    if callable(activation) and not isinstance(activation, type):
        return "none", 0.0, activation
    name, parameter = (activation, None) if isinstance(activation, str) else (None, None)
    if isinstance(activation, tuple) and len(activation) == 2:
        name, parameter = activation
    if not isinstance(name, str) or not (parameter is None or isinstance(parameter, (int, float))):
        raise TypeError(
            f"{op}: activation must be None, a name, a pair (name, number) or a callable that is "
            f"no class, got {activation!r}"
        )
    if name not in ACTIVATIONS:
        raise ValueError(
            f"{op}: activation is {name!r}; the fused ones are {', '.join(ACTIVATIONS)}"
        )
    return name, float(ACTIVATIONS[name][1] if parameter is None else parameter), None


def _has_hooks(module: nn.Module) -> bool:
    """Whether something waits for the module to be called, which a fused one never is."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    return bool(before or after or module._backward_pre_hooks or module._backward_hooks)


def _parse_module(module: nn.Module) -> tuple[str, float, Callable | None]:
    if _has_hooks(module):
        return "none", 0.0, module
    if type(module) is nn.ReLU:
        return "relu", 0.0, None
    if type(module) is nn.LeakyReLU:
        return "leaky_relu", float(module.negative_slope), None
    if type(module) is nn.Threshold and module.value == 0:
        return "threshold", float(module.threshold), None
    if type(module) is nn.GELU:
        return ("gelu_tanh" if module.approximate == "tanh" else "gelu"), 0.0, None
    for kind, name in ((nn.SiLU, "silu"), (nn.Tanh, "tanh"), (nn.Sigmoid, "sigmoid")):
        if type(module) is kind:
            return name, 0.0, None
    return "none", 0.0, module

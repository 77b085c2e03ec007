"""Linear layer with its activation: y = act(x Wᵀ + b), in one pass forward and backward.

Shapes: input [..., K], weight [N, K] (or [K, N] with weight_layout="in_out"), bias [N], result
[..., N]. float64, float32, bfloat16, float16; 16-bit types accumulate in float32. Activations by
name: relu, threshold (value: a pair ("threshold", t)), leaky_relu (("leaky_relu", slope)), gelu,
gelu_tanh, silu, tanh, sigmoid; any other callable runs after the product, unfused.
NaN follows torch: relu and its kin keep NaN and pass its gradient on.
Saved for the backward pass: input and weight, and of the output one bit an element (relu,
threshold, leaky_relu), or the values the derivative needs (the rest).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

from lamina.activations import (
    ACTIVATIONS,
    BY_MASK,
    BY_OUTPUT,
    BY_PREACTIVATION,
    FINISH,
    Activation,
    parse_activation,
)
from lamina.backends import below, choice, choose, kernels, wants_grad
from lamina.checks import autocast_dtype, cast, check_alike, check_bias, check_floating
from lamina.double_backward import partial_gradients
from lamina.fakes import fake, flops
from lamina.modules import MULTIPLIES_BF16
from lamina.spec import FLOATS, Spec


def reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = None,
    *,
    weight_layout: str = "out_in",
) -> Tensor:
    """The definition."""
    name, parameter, after = parse_activation("linear", activation)
    weight = weight if weight_layout == "out_in" else weight.t()
    output = ACTIVATIONS[name][0](F.linear(input, weight, bias), parameter)
    return after(output) if after else output


@fake("linear_forward")
def _forward_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    parameter: float,
    save: bool,
) -> tuple[Tensor, Tensor]:
    output = input.new_empty(*input.shape[:-1], weight.shape[0])
    if save and activation in BY_MASK:
        rows = math.prod(input.shape[:-1])
        return output, input.new_empty(rows, (weight.shape[0] + 7) // 8, dtype=torch.uint8)
    if save and activation in BY_PREACTIVATION:
        return output, torch.empty_like(output)
    return output, input.new_empty(0, dtype=torch.uint8)


@fake("linear_backward")
def _backward_fake(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor,
    activation: str,
    parameter: float,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        input.new_empty(input.shape) if needs[0] else None,
        torch.empty_like(weight) if needs[1] else None,
        weight.new_empty(weight.shape[0]) if needs[2] else None,
    )


@flops("linear_forward")
def _forward_flops(input: torch.Size, weight: torch.Size, *call: Any, out_shape: Any) -> int:
    return 2 * math.prod(input) * weight[0]


@flops("linear_backward")
def _backward_flops(
    grad: torch.Size, input: torch.Size, weight: torch.Size, *call: Any, out_shape: Any
) -> int:
    return 2 * math.prod(input) * weight[0] * sum(call[-1][:2])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str,
        parameter: float,
        backend: str,
    ) -> Tensor:
        output, saved = kernels("linear", backend).forward(
            input, weight, bias, activation, parameter, True
        )
        ctx.save_for_backward(input, weight, bias, output if activation in BY_OUTPUT else saved)
        ctx.activation, ctx.parameter, ctx.backend = activation, parameter, backend
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, saved = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            activation = (ctx.activation, ctx.parameter)
            tensors = (input, weight, bias)
            grads = partial_gradients(lambda *t: reference(*t, activation), tensors, needs, grad)
            return *grads, None, None, None
        grads = kernels("linear", ctx.backend).backward(
            grad, input, weight, saved, ctx.activation, ctx.parameter, needs
        )
        return *grads, None, None, None


def _check(input: Tensor, weight: Tensor, bias: Tensor | None, in_out: bool) -> None:
    check_floating("linear", "input", input)
    check_floating("linear", "weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"linear: weight must have 2 dimensions, got shape {tuple(weight.shape)}")
    outs, ins = reversed(weight.shape) if in_out else weight.shape
    if input.dim() == 0 or input.size(-1) != ins:  # A nested tensor has no shape.
        raise ValueError(
            f"linear: input of shape {tuple(input.shape)} must end in {ins}, the in_features of "
            f"the weight of shape {tuple(weight.shape)}"
        )
    check_alike("linear", "weight", weight, "input", input)
    check_bias("linear", bias, outs, "out_features", weight, input)


_FLOATS = frozenset(FLOATS)
_SMALL = 1 << 18  # multiply-adds; below it our checks and a thread's start outlast the product


def _small(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
) -> Tensor | None:
    """ATen's result for a product so small that our checks would outlast it, else None.

    Only what ATen would get wrong in silence is looked at; where it raises, the caller goes on to
    the full checks, which say what is wrong in our words. Each look costs 0.1 us of the 6 us that
    8 x 64 x 64 takes: `shape` gives most for it.
    """
    try:
        outs, _ = weight.shape
        if (
            is_exporting()  # the comparison would bound a size that it leaves open
            or input.numel() * outs >= _SMALL
            or not (input.is_cpu and weight.is_cpu)  # ATen multiplies by a meta tensor
            or input.dtype not in _FLOATS
            # ATen adds a bias of another dtype to a strided input with three dimensions.
            or (bias is not None and (bias.shape != (outs,) or bias.dtype is not input.dtype))
        ):
            return None
        finish = FINISH[activation]
        output = F.linear(input, weight, bias)
        return finish(output) if finish else output
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return None


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = None,
    *,
    weight_layout: str = "out_in",
    backend: str | None = None,
) -> Tensor:
    """act(input @ weight.T + bias), fused forward and backward.

    Args:
        input: [..., in_features].
        weight: [out_features, in_features]; [in_features, out_features] with
            weight_layout="in_out".
        bias: [out_features] or None.
        activation: None, a name, a pair (name, parameter), an nn.Module or a callable; what is
            not among the fused ones (see the module's docstring) runs after the product.
        backend: see lamina.backends; None lets Lamina choose.

    Returns [..., out_features] in the dtype of the input, or autocast's. Raises ValueError where
    shapes, devices or names do not fit, TypeError where dtypes do not.
    """
    if choice.free and backend is None and weight_layout == "out_in":
        output = _small(input, weight, bias, activation)
        if output is not None:
            return output
    if weight_layout not in ("out_in", "in_out"):
        raise ValueError(
            f"linear: weight_layout is {weight_layout!r}; it must be 'out_in' or 'in_out'"
        )
    name, parameter, after = parse_activation("linear", activation)
    if isinstance(input, Tensor) and (low := autocast_dtype(input)) is not None:
        input, weight, bias = cast(input, low), cast(weight, low), cast(bias, low)
    _check(input, weight, bias, weight_layout == "in_out")
    if weight_layout == "in_out":
        weight = weight.t()
    chosen = choose(SPEC, backend, (input, weight, bias), (name,))
    if chosen == "reference":
        output = ACTIVATIONS[name][0](F.linear(input, weight, bias), parameter)
    elif wants_grad(input, weight, bias):
        output = _Linear.apply(input, weight, bias, name, parameter, chosen)
    else:
        output = kernels("linear", chosen).forward(input, weight, bias, name, parameter, False)[0]
    return after(output) if after else output


def _slower(backend: str, input: Tensor, weight: Tensor, *options: object) -> str | None:
    if below(input.numel() * weight.shape[0], _SMALL):
        return "below 2^18 multiply-adds ATen's shorter call wins"
    if backend != "cpp":
        return None
    rows = input.numel() // max(1, weight.shape[1])
    if input.dtype == torch.bfloat16 and MULTIPLIES_BF16 and not below(rows, 9):
        return "this CPU multiplies bf16 itself, which oneDNN makes use of"
    if below(rows, 8) and weight.stride(-1) != 1 and wants_grad(input, weight, warn=False):
        return "with fewer than 8 rows and a weight of layout in_out ATen's gradients are faster"
    return None


SPEC = Spec(
    name="linear",
    functional=linear,
    reference=reference,
    slower=_slower,
)

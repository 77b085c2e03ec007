"""Template of an op: y = x · sigmoid(slope · x). Copy this file, then replace, from top to bottom.

Say here what the op computes and where it comes from (paper or article), its shapes and dtypes,
what NaN does, and what it saves for the backward pass.

Shapes: any; the output has the input's shape. Saved: the input.
Source: Ramachandran, Zoph, Le, "Searching for Activation Functions", 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lamina.backends import choose, kernels, wants_grad
from lamina.checks import check_floating
from lamina.double_backward import partial_gradients
from lamina.fakes import fake
from lamina.scripting import refuse_scripting
from lamina.spec import Spec


def reference(input: Tensor, slope: float = 1.0) -> Tensor:
    """The definition: plain, differentiable torch."""
    return input * torch.sigmoid(slope * input)


@fake("swish_forward")
def _forward_fake(input: Tensor, slope: float) -> Tensor:
    return torch.empty_like(input)


@fake("swish_backward")
def _backward_fake(grad: Tensor, input: Tensor, slope: float) -> Tensor:
    return torch.empty_like(input)


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, slope: float, backend: str) -> Tensor:
        ctx.save_for_backward(input)
        ctx.slope, ctx.backend = slope, backend
        return kernels("swish", backend).forward(input, slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (input,) = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # Double backward.
            (found,) = partial_gradients(lambda x: reference(x, ctx.slope), [input], [True], grad)
            return found, None, None
        return kernels("swish", ctx.backend).backward(grad, input, ctx.slope), None, None


@torch.fx.wrap
def swish(input: Tensor, slope: float = 1.0, *, backend: str | None = None) -> Tensor:
    """x · sigmoid(slope · x).

    Args:
        input: any shape; float64, float32, bfloat16 or float16.
        slope: how steep the gate is.
        backend: see lamina.backends; None lets Lamina choose.

    Returns a tensor of the input's shape and dtype. Raises TypeError if `input` is not a
    floating-point tensor.
    """
    check_floating("swish", "input", input)
    chosen = choose(SPEC, backend, (input,), (slope,))
    if chosen == "reference":
        return reference(input, slope)
    if wants_grad(input):
        return _Swish.apply(input, slope, chosen)
    return kernels("swish", chosen).forward(input, slope)


class Swish(nn.Module):
    """The layer of `swish`."""

    __prepare_scriptable__ = refuse_scripting

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, input: Tensor) -> Tensor:
        return swish(input, self.slope)

    def extra_repr(self) -> str:
        return f"slope={self.slope}"


SPEC = Spec(
    name="swish",
    functional=swish,
    reference=reference,
)

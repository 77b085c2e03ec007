"""Threshold ReLU: y = x where x > threshold, else 0.

Shapes: any; output has the shape, dtype and strides of the input. NaN stays NaN, and its gradient
is passed on, as torch.nn.functional.threshold does. The backward pass needs one bit for each
element, so that is all that is saved: 1/32 of a float32 input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

from lamina.backends import below, choice, choose, kernels, wants_grad
from lamina.checks import check_floating
from lamina.fakes import fake
from lamina.spec import FLOATS, Spec


def reference(input: Tensor, threshold: float = 0.0) -> Tensor:
    """The definition."""
    return F.threshold(input, threshold, 0.0)


@fake("threshold_forward")
def _forward_fake(input: Tensor, threshold: float, save_mask: bool) -> tuple[Tensor, Tensor]:
    mask_bytes = (input.numel() + 7) // 8 if save_mask else 0
    return torch.empty_like(input), input.new_empty(mask_bytes, dtype=torch.uint8)


@fake("threshold_backward")
def _backward_fake(grad: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(grad)


def unpack_mask(mask: Tensor, like: Tensor) -> Tensor:
    """The bits of `mask` as a bool tensor with the shape and memory order of `like`."""
    bits = (mask[:, None] >> torch.arange(8, device=mask.device, dtype=torch.uint8)) & 1
    return bits.bool().flatten().as_strided(like.shape, like.stride())


class _ThresholdReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, threshold: float, backend: str) -> Tensor:
        output, mask = kernels("threshold", backend).forward(input, threshold, True)
        ctx.save_for_backward(mask)
        ctx.backend = backend
        ctx.stride = output.stride()
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        if grad.stride() != ctx.stride:  # The bits are in the memory order of the output.
            grad = torch.empty_strided(
                grad.shape, ctx.stride, dtype=grad.dtype, device=grad.device
            ).copy_(grad)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return torch.where(unpack_mask(mask, grad), grad, 0.0), None, None
        return kernels("threshold", ctx.backend).backward(grad, mask), None, None


_FLOATS = frozenset(FLOATS)
_SMALL = 3 << 20  # elements; with fewer, forward and backward of ATen work in the caches


@torch.fx.wrap
def threshold_relu(input: Tensor, threshold: float = 0.0, *, backend: str | None = None) -> Tensor:
    """Keep what is above `threshold`, replace the rest by zero.

    Args:
        input: any shape and strides; float64, float32, bfloat16 or float16.
        threshold: the largest value that is replaced.
        backend: see lamina.backends; None lets Lamina choose.

    Returns a tensor with the shape and dtype of `input`. Raises TypeError if `input` is not a
    floating-point tensor or `threshold` is not a number.
    """
    if choice.free and backend is None and isinstance(threshold, (int, float)):
        # A small call would notice the checks; what they would refuse goes on to them.
        try:
            if not is_exporting() and input.numel() < _SMALL and input.dtype in _FLOATS:
                return torch.threshold(input, threshold, 0.0)
        except (AttributeError, RuntimeError, TypeError):
            pass
    check_floating("threshold_relu", "input", input)
    if not isinstance(threshold, (int, float)):
        raise TypeError(
            f"threshold_relu: threshold must be a number, got {type(threshold).__name__}"
        )
    chosen = choose(SPEC, backend, (input,))
    if chosen == "reference":
        return reference(input, threshold)
    if wants_grad(input):
        return _ThresholdReLU.apply(input, float(threshold), chosen)
    return kernels("threshold", chosen).forward(input, float(threshold), False)[0]


@torch.fx.wrap
def _threshold_relu_(input: Tensor, threshold: float) -> Tensor:
    check_floating("threshold_relu", "input", input)
    return F.threshold(input, threshold, 0.0, inplace=True)


class ThresholdReLU(nn.Module):
    """The layer y = x where x > threshold, else 0; see `threshold_relu`.

    With `inplace=True` the input is overwritten, as torch.nn.Threshold does, by ATen's own kernel:
    there is no output to allocate, hence nothing that a kernel of ours could save.
    """

    def __init__(self, threshold: float = 0.0, inplace: bool = False) -> None:
        super().__init__()
        self.threshold = threshold
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        if self.inplace:
            return _threshold_relu_(input, self.threshold)
        return threshold_relu(input, self.threshold)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}" + (", inplace=True" if self.inplace else "")


def _slower(backend: str, input: Tensor, *options: object) -> str | None:
    if below(input.numel(), _SMALL if wants_grad(input) else 1 << 23):
        return "while the tensors lie in the caches ATen is as fast or faster"
    return None


SPEC = Spec(
    name="threshold",
    functional=threshold_relu,
    reference=reference,
    slower=_slower,
)

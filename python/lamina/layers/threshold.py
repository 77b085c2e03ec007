"""Threshold ReLU: y = x where x > threshold, else 0.

Shapes: any; output has the shape, dtype and strides of the input. NaN stays NaN, and its gradient
is passed on, as torch.nn.functional.threshold does. The backward pass needs one bit for each
element, so that is all that is saved: 1/32 of a float32 input.

In place, the input is overwritten with the output, and the bits are all that a training step keeps
beside it. ATen's own kernel keeps a copy of what it overwrites.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

from lamina.backends import below, choice, choose, kernels, wants_grad
from lamina.checks import check_floating, check_number
from lamina.fakes import fake
from lamina.scripting import refuse_scripting
from lamina.spec import FLOATS, Spec


def reference(input: Tensor, threshold: float = 0.0, inplace: bool = False) -> Tensor:
    """The definition."""
    return F.threshold(input, threshold, 0.0, inplace)


@fake("threshold_forward")
def _forward_fake(input: Tensor, threshold: float, save_mask: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), _forward_in_place_fake(input, threshold, save_mask)


@fake("threshold_forward_")
def _forward_in_place_fake(input: Tensor, threshold: float, save_mask: bool) -> Tensor:
    mask_bytes = (input.numel() + 7) // 8 if save_mask else 0
    return input.new_empty(mask_bytes, dtype=torch.uint8)


@fake("threshold_backward")
def _backward_fake(grad: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(grad)


def unpack_mask(mask: Tensor, like: Tensor) -> Tensor:
    """The bits of `mask` as a bool tensor with the shape and memory order of `like`."""
    bits = (mask[:, None] >> torch.arange(8, device=mask.device, dtype=torch.uint8)) & 1
    return bits.bool().flatten().as_strided(like.shape, like.stride())


class _ThresholdReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, threshold: float, inplace: bool, backend: str) -> Tensor:
        run = kernels("threshold", backend)
        if inplace:
            output, mask = input, run.forward_(input, threshold, True)
            ctx.mark_dirty(input)
        else:
            output, mask = run.forward(input, threshold, True)
        ctx.save_for_backward(mask)
        ctx.backend = backend
        ctx.stride = output.stride()
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (mask,) = ctx.saved_tensors
        if grad.stride() != ctx.stride:  # The bits are in the memory order of the output.
            grad = torch.empty_strided(
                grad.shape, ctx.stride, dtype=grad.dtype, device=grad.device
            ).copy_(grad)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return torch.where(unpack_mask(mask, grad), grad, 0.0), None, None, None
        return kernels("threshold", ctx.backend).backward(grad, mask), None, None, None


_FLOATS = frozenset(FLOATS)
_SMALL = 3 << 20  # elements; with fewer, forward and backward of ATen work in the caches
_SMALL_IN_PLACE = 1 << 20  # elements; ATen has a copy to make, so that ours pays earlier


def _refused_by_autograd(input: Tensor) -> bool:
    """Whether torch raises where `input` is written to: our kernel would have written before."""
    if input.is_inference():
        return not torch.is_inference_mode_enabled()
    return input.is_leaf and wants_grad(input, warn=False)


@torch.fx.wrap
def threshold_relu(
    input: Tensor, threshold: float = 0.0, inplace: bool = False, *, backend: str | None = None
) -> Tensor:
    """Keep what is above `threshold`, replace the rest by zero.

    Args:
        input: any shape and strides; float64, float32, bfloat16 or float16.
        threshold: the largest value that is replaced.
        inplace: overwrite `input` and return it. What torch refuses to overwrite, such as a leaf
            that requires grad, raises torch's RuntimeError.
        backend: see lamina.backends; None lets Lamina choose.

    Returns a tensor with the shape and dtype of `input`; in place, `input`. Raises TypeError if
    `input` is not a floating-point tensor or `threshold` is not a number.
    """
    if choice.free and backend is None and isinstance(threshold, (int, float)):
        # A small call would notice the checks; what they would refuse goes on to them.
        try:
            small = _SMALL_IN_PLACE if inplace else _SMALL
            if not is_exporting() and input.numel() < small and input.dtype in _FLOATS:
                return (torch.threshold_ if inplace else torch.threshold)(input, threshold, 0.0)
        except (AttributeError, RuntimeError, TypeError):
            pass
    check_floating("threshold_relu", "input", input)
    check_number("threshold_relu", "threshold", threshold)
    chosen = choose(SPEC, backend, (input,), (inplace,))
    if chosen == "reference" or (inplace and _refused_by_autograd(input)):
        return reference(input, threshold, inplace)
    if wants_grad(input):
        return _ThresholdReLU.apply(input, float(threshold), inplace, chosen)
    run = kernels("threshold", chosen)
    if inplace:
        run.forward_(input, float(threshold), False)
        return input
    return run.forward(input, float(threshold), False)[0]


class ThresholdReLU(nn.Module):
    """The layer y = x where x > threshold, else 0; see `threshold_relu`."""

    __prepare_scriptable__ = refuse_scripting

    def __init__(self, threshold: float = 0.0, inplace: bool = False) -> None:
        super().__init__()
        check_number("ThresholdReLU", "threshold", threshold)
        self.threshold = threshold
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return threshold_relu(input, self.threshold, self.inplace)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}" + (", inplace=True" if self.inplace else "")


def _unsupported(backend: str, input: Tensor, inplace: bool) -> list[str]:
    if not inplace:
        return []
    if torch.compiler.is_compiling():
        return ["in place, torch.compile makes one kernel of ATen's and of what is around it"]
    reasons = []
    if not torch.ops.aten.is_non_overlapping_and_dense(input):
        reasons.append("in place, the elements must fill their memory without gaps")
    if input.requires_grad and input._is_view():
        reasons.append("in place, the gradients of a view and of its base are autograd's matter")
    return reasons


def _slower(backend: str, input: Tensor, inplace: bool) -> str | None:
    if inplace:
        if not wants_grad(input, warn=False):
            return "in place and without a gradient, ATen moves as few bytes"
        if below(input.numel(), _SMALL_IN_PLACE):
            return "while the tensors lie in the caches ATen is as fast or faster"
        return None
    if below(input.numel(), _SMALL if wants_grad(input, warn=False) else 1 << 23):
        return "while the tensors lie in the caches ATen is as fast or faster"
    return None


SPEC = Spec(
    name="threshold",
    functional=threshold_relu,
    reference=reference,
    unsupported=_unsupported,
    slower=_slower,
)

"""The columns of an image, as torch.nn.functional.unfold gives them.

Shapes: input [N, C, H, W] or [C, H, W]; result [N, C * R * S, L] (or without N) with one column for
each of the L positions of an R x S kernel, row c * R * S + r * S + s holding input pixel
(y * stride + r * dilation - padding, x * stride + s * dilation - padding) of channel c, 0 outside.
`conv2d` gathers these columns without storing them; this op is for those who want to see them.
The backward pass is col2im.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.backends import choose, kernels, wants_grad
from lamina.checks import check_floating
from lamina.double_backward import partial_gradients
from lamina.fakes import fake
from lamina.spec import Spec
from lamina.windows import Pair, as_pair, positions


def reference(
    input: Tensor, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1
) -> Tensor:
    """The definition."""
    return F.unfold(input, kernel_size, dilation, padding, stride)


def check_window(
    op: str, kernel_size: Pair, dilation: Pair, padding: Pair, stride: Pair, size: list[int]
) -> list[list[int]]:
    """The window's arguments as pairs; ValueError if it does not fit in the image."""
    window = [
        as_pair(op, "kernel_size", kernel_size, 1),
        as_pair(op, "dilation", dilation, 1),
        as_pair(op, "padding", padding, 0),
        as_pair(op, "stride", stride, 1),
    ]
    kernel, dilation, padding, _ = window
    for d in (0, 1):
        if size[d] + 2 * padding[d] < dilation[d] * (kernel[d] - 1) + 1:
            raise ValueError(
                f"{op}: kernel_size {kernel} with dilation {dilation} is larger than the image of "
                f"size {size} with padding {padding}"
            )
    return window


@fake("im2col_forward")
def _forward_fake(
    input: Tensor, kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> Tensor:
    images, channels, *size = input.shape
    columns = math.prod(positions(size, kernel, dilation, padding, stride))
    return input.new_empty(images, channels * kernel[0] * kernel[1], columns)


@fake("im2col_backward")
def _backward_fake(
    grad: Tensor,
    size: list[int],
    kernel: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> Tensor:
    return grad.new_empty(grad.shape[0], grad.shape[1] // (kernel[0] * kernel[1]), *size)


class _Im2col(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, window: list[list[int]], backend: str) -> Tensor:
        ctx.size, ctx.window, ctx.backend = list(input.shape[2:]), window, backend
        return kernels("im2col", backend).forward(input, *window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            image = grad.new_zeros(
                grad.shape[0], grad.shape[1] // (ctx.window[0][0] * ctx.window[0][1]), *ctx.size
            ).requires_grad_()
            formula = lambda image: reference(image, *ctx.window)  # noqa: E731
            return partial_gradients(formula, [image], [True], grad)[0], None, None
        backward = kernels("im2col", ctx.backend).backward
        return backward(grad, ctx.size, *ctx.window), None, None


def im2col(
    input: Tensor,
    kernel_size: Pair,
    dilation: Pair = 1,
    padding: Pair = 0,
    stride: Pair = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """The columns [N, C * R * S, L] of `input`; arguments as torch.nn.functional.unfold.

    Raises TypeError for anything but floating-point tensors and ints, ValueError where the input
    is not [N, C, H, W] or [C, H, W] or smaller than the kernel.
    """
    check_floating("im2col", "input", input)
    if input.dim() not in (3, 4):
        raise ValueError(
            f"im2col: input must be [N, C, H, W] or [C, H, W], got shape {tuple(input.shape)}"
        )
    size = list(input.shape[-2:])
    window = check_window("im2col", kernel_size, dilation, padding, stride, size)
    chosen = choose(SPEC, backend, (input,), tuple(window))
    if chosen == "reference":
        return reference(input, *window)
    images = input if input.dim() == 4 else input.unsqueeze(0)
    if wants_grad(input):
        columns = _Im2col.apply(images, window, chosen)
    else:
        columns = kernels("im2col", chosen).forward(images, *window)
    return columns if input.dim() == 4 else columns.squeeze(0)


SPEC = Spec(
    name="im2col",
    functional=im2col,
    reference=reference,
)

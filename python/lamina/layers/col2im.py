"""The sum of columns into an image, as torch.nn.functional.fold gives it: the transpose of im2col.

Shapes: input [N, C * R * S, L] or [C * R * S, L]; result [N, C, H, W] or [C, H, W] with
(H, W) = output_size. Pixels that several positions of the kernel cover get the sum of all, always
taken in the same order; 16-bit types are summed in float32. The backward pass is im2col.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.backends import choose, kernels, wants_grad
from lamina.checks import check_floating
from lamina.fakes import fake
from lamina.layers import im2col
from lamina.spec import Spec
from lamina.windows import Pair, as_pair, positions


def reference(
    input: Tensor,
    output_size: Pair,
    kernel_size: Pair,
    dilation: Pair = 1,
    padding: Pair = 0,
    stride: Pair = 1,
) -> Tensor:
    """The definition."""
    return F.fold(input, output_size, kernel_size, dilation, padding, stride)


@fake("col2im_forward")
def _forward_fake(
    input: Tensor,
    size: list[int],
    kernel: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> Tensor:
    return input.new_empty(input.shape[0], input.shape[1] // (kernel[0] * kernel[1]), *size)


@fake("col2im_backward")
def _backward_fake(
    grad: Tensor, kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> Tensor:
    images, channels, *size = grad.shape
    columns = math.prod(positions(size, kernel, dilation, padding, stride))
    return grad.new_empty(images, channels * kernel[0] * kernel[1], columns)


class _Col2im(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, size: list[int], window: list[list[int]], backend: str
    ) -> Tensor:
        ctx.window, ctx.backend = window, backend
        return kernels("col2im", backend).forward(input, size, *window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return im2col.reference(grad, *ctx.window), None, None, None
        return kernels("col2im", ctx.backend).backward(grad, *ctx.window), None, None, None


def col2im(
    input: Tensor,
    output_size: Pair,
    kernel_size: Pair,
    dilation: Pair = 1,
    padding: Pair = 0,
    stride: Pair = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """The image [N, C, H, W] that the columns add up to; arguments as torch.nn.functional.fold.

    Raises TypeError for anything but floating-point tensors and ints, ValueError where the input's
    shape is not what im2col of such an image has.
    """
    check_floating("col2im", "input", input)
    size = as_pair("col2im", "output_size", output_size, 1)
    window = im2col.check_window("col2im", kernel_size, dilation, padding, stride, size)
    area = window[0][0] * window[0][1]
    columns = math.prod(positions(size, *window))
    if input.dim() not in (2, 3) or input.shape[-2] % area or input.shape[-1] != columns:
        raise ValueError(
            f"col2im: input must be [N, C * {area}, {columns}] or [C * {area}, {columns}] for an "
            f"image of size {size}, got shape {tuple(input.shape)}"
        )
    chosen = choose(SPEC, backend, (input,), (size, *window))
    if chosen == "reference":
        return reference(input, size, *window)
    batched = input if input.dim() == 3 else input.unsqueeze(0)
    if wants_grad(input):
        image = _Col2im.apply(batched, size, window, chosen)
    else:
        image = kernels("col2im", chosen).forward(batched, size, *window)
    return image if input.dim() == 3 else image.squeeze(0)


SPEC = Spec(
    name="col2im",
    functional=col2im,
    reference=reference,
)

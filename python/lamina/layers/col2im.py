"""The sum of columns into an image, as torch.nn.functional.fold gives it: the transpose of im2col.

Shapes: input [N, C * R * S, L] or [C * R * S, L]; result [N, C, H, W] or [C, H, W] with
(H, W) = output_size. Pixels that several positions of the kernel cover get the sum of all, always
taken in the same order; 16-bit types are summed in float32. The backward pass is im2col.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.backends import choose, kernels
from lamina.checks import check_floating
from lamina.fakes import fake
from lamina.layers import im2col
from lamina.layers.conv2d import Pair, as_pair
from lamina.spec import BadInput, Sample, Spec, Workload


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
    columns = im2col.positions(size, kernel, dilation, padding, stride)
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
    columns = im2col.positions(size, *window)
    if input.dim() not in (2, 3) or input.shape[-2] % area or input.shape[-1] != columns:
        raise ValueError(
            f"col2im: input must be [N, C * {area}, {columns}] or [C * {area}, {columns}] for an "
            f"image of size {size}, got shape {tuple(input.shape)}"
        )
    chosen = choose(SPEC, backend, (input,), (size, *window))
    if chosen == "reference":
        return reference(input, size, *window)
    batched = input if input.dim() == 3 else input.unsqueeze(0)
    if torch.is_grad_enabled() and input.requires_grad:
        image = _Col2im.apply(batched, size, window, chosen)
    else:
        image = kernels("col2im", chosen).forward(batched, size, *window)
    return image if input.dim() == 3 else image.squeeze(0)


def _samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def sample(name: str, *shape: int, **kwargs: Any) -> Sample:
        input = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
        return Sample(name, (input, (5, 6), (3, 2)), kwargs)

    yield sample("plain", 2, 18, 15)
    yield sample("all arguments", 2, 12, 12, dilation=(1, 2), padding=(2, 1), stride=(2, 2))
    yield sample("unbatched", 6, 35, padding=(1, 1))
    yield sample("stride past kernel", 1, 12, 2, stride=4)
    yield sample("batch 0", 0, 6, 15)


def _bad_inputs(device: torch.device) -> Iterator[BadInput]:
    x = torch.ones(1, 8, 9, device=device)
    yield BadInput("list", ([1.0], 4, 2), TypeError, "input must be a Tensor, got list")
    yield BadInput("integers", (x.long(), 4, 2), TypeError, "floating-point dtype, got torch.int64")
    yield BadInput("columns", (x[..., 1:], 4, 2), ValueError, r"\[N, C \* 4, 9\].*\(1, 8, 8\)")
    yield BadInput("rows", (x[:, 1:], 4, 2), ValueError, r"\[N, C \* 4, 9\].*\(1, 7, 9\)")
    yield BadInput("large kernel", (x, 4, 5), ValueError, r"kernel_size \[5, 5\].*is larger than")
    yield BadInput("size", (x, (4, 4, 4), 2), ValueError, "output_size must be an int or two ints")


def _workload(images: int, channels: int, size: int) -> Workload:
    name = f"{images}x{channels}x{size}² 3x3"

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        shape = (images, 9 * channels, size * size)
        input = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
        return Sample(name, (input, size, 3), {"padding": 1})

    elements = images * channels * size * size
    return Workload(name, build, flops=9 * elements, elements=10 * elements, backward=1.0)


SPEC = Spec(
    name="col2im",
    functional=col2im,
    reference=reference,
    samples=_samples,
    bad_inputs=_bad_inputs,
    workloads=(_workload(8, 64, 56), _workload(8, 256, 14)),
)

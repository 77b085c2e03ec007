"""The columns of an image, as torch.nn.functional.unfold gives them.

Shapes: input [N, C, H, W] or [C, H, W]; result [N, C * R * S, L] (or without N) with one column for
each of the L positions of an R x S kernel, row c * R * S + r * S + s holding input pixel
(y * stride + r * dilation - padding, x * stride + s * dilation - padding) of channel c, 0 outside.
`conv2d` gathers these columns without storing them; this op is for those who want to see them.
The backward pass is col2im.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.backends import choose, kernels
from lamina.checks import check_floating
from lamina.double_backward import partial_gradients
from lamina.fakes import fake
from lamina.layers.conv2d import Pair, as_pair
from lamina.spec import BadInput, Sample, Spec, Workload


def reference(
    input: Tensor, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1
) -> Tensor:
    """The definition."""
    return F.unfold(input, kernel_size, dilation, padding, stride)


def positions(
    size: list[int], kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> int:
    """How many places the kernel takes on an image of this size."""
    count = 1
    for d in (0, 1):
        count *= (size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
    return count


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
    columns = positions(size, kernel, dilation, padding, stride)
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
    if torch.is_grad_enabled() and input.requires_grad:
        columns = _Im2col.apply(images, window, chosen)
    else:
        columns = kernels("im2col", chosen).forward(images, *window)
    return columns if input.dim() == 4 else columns.squeeze(0)


def _samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def sample(name: str, *shape: int, **kwargs: Any) -> Sample:
        input = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
        return Sample(name, (input, (3, 2)), kwargs)

    yield sample("plain", 2, 3, 5, 6)
    yield sample("all arguments", 2, 3, 9, 8, dilation=(1, 2), padding=(2, 1), stride=(2, 3))
    yield sample("same size", 1, 2, 7, 9, padding=(1, 0))
    yield sample("unbatched", 3, 5, 6, padding=1)
    yield sample("stride past kernel", 1, 2, 9, 9, stride=4)
    yield sample("batch 0", 0, 3, 5, 6)
    image = torch.randn(2, 3, 5, 6, dtype=dtype, device=device)
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    yield Sample("channels_last", (image, 3), {"padding": 1})


def _bad_inputs(device: torch.device) -> Iterator[BadInput]:
    x = torch.ones(1, 2, 4, 4, device=device)
    yield BadInput("list", ([1.0], 2), TypeError, "input must be a Tensor, got list")
    yield BadInput("integers", (x.long(), 2), TypeError, "floating-point dtype, got torch.int64")
    yield BadInput("dimensions", (x[0, 0], 2), ValueError, r"\[C, H, W\], got shape \(4, 4\)")
    yield BadInput("kernel", (x, 0), ValueError, "kernel_size must be at least 1, got 0")
    yield BadInput("large kernel", (x, 5), ValueError, r"kernel_size \[5, 5\].*is larger than")
    yield BadInput("stride", (x, 2, 1, 0, 0), ValueError, "stride must be at least 1, got 0")


def _workload(images: int, channels: int, size: int) -> Workload:
    name = f"{images}x{channels}x{size}² 3x3"

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        shape = (images, channels, size, size)
        input = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
        return Sample(name, (input, 3), {"padding": 1})

    elements = images * channels * size * size
    return Workload(name, build, flops=0, elements=10 * elements, backward=1.0)


SPEC = Spec(
    name="im2col",
    functional=im2col,
    reference=reference,
    samples=_samples,
    bad_inputs=_bad_inputs,
    workloads=(_workload(8, 64, 56), _workload(8, 256, 14)),
)

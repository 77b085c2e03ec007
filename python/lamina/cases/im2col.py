"""The calls that tests, `lamina check` and `lamina bench` make of im2col."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
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


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    x = torch.ones(1, 2, 4, 4, device=device)
    yield BadInput("list", ([1.0], 2), TypeError, "input must be a Tensor, got list")
    yield BadInput("integers", (x.long(), 2), TypeError, "floating-point dtype, got torch.int64")
    yield BadInput("dimensions", (x[0, 0], 2), ValueError, r"\[C, H, W\], got shape \(4, 4\)")
    yield BadInput("kernel", (x, 0), ValueError, "kernel_size must be at least 1, got 0")
    yield BadInput("large kernel", (x, 5), ValueError, r"kernel_size \[5, 5\].*is larger than")
    yield BadInput("stride", (x, 2, 1, 0, 0), ValueError, "stride must be at least 1, got 0")
    yield BadInput("dilation", (x, 2, 0), ValueError, "dilation must be at least 1, got 0")
    yield BadInput("padding", (x, 2, 1, -1), ValueError, "padding must be at least 0, got -1")


def workload(images: int, channels: int, size: int) -> Workload:
    name = f"{images}x{channels}x{size}² 3x3"

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        shape = (images, channels, size, size)
        input = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
        return Sample(name, (input, 3), {"padding": 1})

    elements = images * channels * size * size
    return Workload(name, build, flops=0, elements=10 * elements, backward=1.0)


WORKLOADS = (workload(8, 64, 56), workload(8, 256, 14))

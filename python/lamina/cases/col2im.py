"""The calls that tests, `lamina check` and `lamina bench` make of col2im."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def sample(name: str, *shape: int, **kwargs: Any) -> Sample:
        input = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
        return Sample(name, (input, (5, 6), (3, 2)), kwargs)

    yield sample("plain", 2, 18, 15)
    yield sample("all arguments", 2, 12, 12, dilation=(1, 2), padding=(2, 1), stride=(2, 2))
    yield sample("unbatched", 6, 35, padding=(1, 1))
    yield sample("stride past kernel", 1, 12, 2, stride=4)
    yield sample("batch 0", 0, 6, 15)


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    x = torch.ones(1, 8, 9, device=device)
    yield BadInput("list", ([1.0], 4, 2), TypeError, "input must be a Tensor, got list")
    yield BadInput("integers", (x.long(), 4, 2), TypeError, "floating-point dtype, got torch.int64")
    yield BadInput("columns", (x[..., 1:], 4, 2), ValueError, r"\[N, C \* 4, 9\].*\(1, 8, 8\)")
    yield BadInput("rows", (x[:, 1:], 4, 2), ValueError, r"\[N, C \* 4, 9\].*\(1, 7, 9\)")
    yield BadInput("large kernel", (x, 4, 5), ValueError, r"kernel_size \[5, 5\].*is larger than")
    yield BadInput("no size", (x, 0, 2), ValueError, "output_size must be at least 1, got 0")
    yield BadInput("size", (x, (4, 4, 4), 2), ValueError, "output_size must be an int or two ints")


def workload(images: int, channels: int, size: int) -> Workload:
    name = f"{images}x{channels}x{size}² 3x3"

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        shape = (images, 9 * channels, size * size)
        input = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
        return Sample(name, (input, size, 3), {"padding": 1})

    elements = images * channels * size * size
    return Workload(name, build, flops=9 * elements, elements=10 * elements, backward=1.0)


WORKLOADS = (workload(8, 64, 56), workload(8, 256, 14))

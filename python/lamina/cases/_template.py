"""The calls that tests, `lamina check` and `lamina bench` make of swish. Copied with the op."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    inputs = {
        "odd sizes": draw(3, 5, 7),
        "empty": draw(0, 3),
        "strided": draw(8, 10)[::2, ::3],
        "expanded": draw(4, 1).expand(4, 6),
    }
    for name, input in inputs.items():
        yield Sample(name, (input.requires_grad_(), 1.5))


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    integers = torch.ones(3, dtype=torch.int64, device=device)
    yield BadInput("integers", (integers,), TypeError, "floating-point dtype, got torch.int64")


def workload(millions: int) -> Workload:
    """Its name tells the sizes in this order: `lamina bench <op> --shapes 7M` makes 7 millions."""

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        input = torch.randn(millions << 20, dtype=dtype, device=device, requires_grad=True)
        return Sample(f"{millions}M", (input,))

    elements = millions << 20
    return Workload(f"{millions}M", build, flops=4 * elements, elements=2 * elements)


WORKLOADS = (workload(1), workload(16))

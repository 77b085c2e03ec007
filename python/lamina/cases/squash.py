"""The calls that tests, `lamina check` and `lamina bench` make of squash."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lamina.layers.squash import KINDS
from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    for kind in KINDS:
        eps = 0.0 if kind == "exact" else 1e-3
        yield Sample(f"{kind}, odd", (draw(3, 5).requires_grad_(), kind, eps))
        zeros = draw(4, 8)
        zeros[1:3] = 0
        yield Sample(f"{kind}, zeros", (zeros.requires_grad_(), kind))
    layouts = {
        "vector": draw(7),
        "transposed": draw(6, 9).t(),
        "strided": draw(8, 10)[::2, ::3],
        "expanded": draw(4, 1, 3).expand(4, 6, 3),
        "many": draw(37, 10, 16),
        "empty": draw(0, 3),
        "no dimensions": draw(3, 0),
    }
    for name, input in layouts.items():
        yield Sample(name, (input.requires_grad_(),))


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    ones = torch.ones(2, 3, device=device)
    yield BadInput("integers", (ones.long(),), TypeError, "floating-point dtype, got torch.int64")
    yield BadInput("scalar", (ones.sum(),), ValueError, "at least 1 dimension")
    yield BadInput("kind", (ones, "l2"), ValueError, "kind is 'l2'; it must be one of exact")
    yield BadInput("eps", (ones, "exp", -1.0), ValueError, "eps must not be negative, got -1.0")
    yield BadInput("eps type", (ones, "exp", "0"), TypeError, "eps must be a number, got str")


def workload(vectors: int, dim: int) -> Workload:
    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        input = torch.randn(vectors, dim, dtype=dtype, device=device, requires_grad=True)
        return Sample(f"{vectors}x{dim}", (input,))

    elements = vectors * dim
    return Workload(f"{vectors}x{dim}", build, flops=3 * elements, elements=2 * elements)


WORKLOADS = (workload(1280, 16), workload(147456, 8))

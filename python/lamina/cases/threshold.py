"""The calls that tests, `lamina check` and `lamina bench` make of threshold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lamina.spec import BadInput, Sample, Workload


def samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    edge = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.5], device=device)
    layouts = {
        "odd sizes": draw(3, 5, 7),
        "scalar": draw(),
        "empty": draw(0, 3),
        "long": draw(1031),
        "channels_last": draw(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "transposed": draw(6, 9).t(),
        "strided": draw(8, 10)[::2, ::3],
        "offset": draw(50)[1:],
        "expanded": draw(4, 1).expand(4, 6),
    }
    for name, input in layouts.items():
        yield Sample(name, (input.requires_grad_(),), {"threshold": 0.25})
    for name in ("odd sizes", "scalar", "empty", "long", "channels_last", "transposed"):
        options = {"threshold": -0.25, "inplace": True}
        yield Sample(f"{name}, in place", (layouts[name],), options, overwrites=True)
    yield Sample("default", (draw(10).requires_grad_(),))
    yield Sample("negative", (draw(33).requires_grad_(), -0.5))
    # Whole bytes of the mask, and a part of one.
    yield Sample("non-finite", (edge.to(dtype).repeat(5).requires_grad_(), 0.5))
    edges = (edge.to(dtype).repeat(5).requires_grad_(), 0.5, True)
    yield Sample("non-finite, in place", edges, overwrites=True)


def bad_inputs(device: torch.device) -> Iterator[BadInput]:
    yield BadInput("list", ([1.0],), TypeError, "input must be a Tensor, got list")
    integers = torch.ones(3, dtype=torch.int64, device=device)
    yield BadInput("integers", (integers,), TypeError, "floating-point dtype, got torch.int64")
    floats = torch.ones(3, device=device)
    yield BadInput("text", (floats, "0"), TypeError, "threshold must be a number, got str")
    yield BadInput("in place", ([1.0], 0.0, True), TypeError, "must be a Tensor, got list")
    yield BadInput(
        "backend", (floats,), ValueError, "backend is 'gpu'; the backends are", {"backend": "gpu"}
    )


def workload(millions: int, inplace: bool = False) -> Workload:
    """In place it works on what an earlier layer made: the copy that stands for it is not timed."""

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        input = torch.randn(millions << 20, dtype=dtype, device=device, requires_grad=True)
        options = {"inplace": True} if inplace else {}
        return Sample(name, (input, 0.1), options, overwrites=inplace)

    elements = millions << 20
    name = f"{millions}M" + (" in place" if inplace else "")
    return Workload(name, build, flops=elements, elements=2 * elements, backward=1.0)


WORKLOADS = tuple(map(workload, (1, 4, 16, 64)))
# For whoever names them: --shapes '*in place'.
MORE_WORKLOADS = tuple(workload(millions, inplace=True) for millions in (1, 2, 4, 16, 64))
GPU_WORKLOADS = tuple(map(workload, (256, 64, 16)))

"""The second stage of every sum: parts that programs left are added in order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch


@triton.jit
def ordered_parts(partial, offset, inside, parts, size):
    """The sum over p of partial[p * size + offset], p in order."""
    total = tl.zeros(inside.shape, partial.dtype.element_ty)
    pointers = partial + offset
    for _ in tl.range(0, parts):
        total += tl.load(pointers, mask=inside, other=0.0)
        pointers += size
    return total


@triton.jit
def ordered_sum_kernel(partial, output, parts, size, scale: tl.float64, BLOCK: tl.constexpr):
    """output[i] = scale * the sum over p of partial[p, i], p in order."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    total = ordered_parts(partial, index, inside, parts, size)
    total *= tl.full([1], scale, total.dtype)
    tl.store(output + index, total.to(output.dtype.element_ty), mask=inside)


def ordered_sum(partial: Tensor, output: Tensor, scale: float = 1.0) -> Tensor:
    """output = scale * partial.sum(0), in order, for contiguous tensors; returns output."""
    size, block = output.numel(), 1024
    launch(
        ordered_sum_kernel,
        triton.cdiv(size, block),
        *(partial, output, partial.size(0), size, scale),
        BLOCK=block,
        num_warps=4,
    )
    return output

"""Threshold: y = 0 where x <= t, else x; one bit an element is kept for the backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contracts import check_dense, check_threshold_backward
from .epilogue import compute_type
from .launch import Target, launch, refusals, register

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BLOCK = 4096
MAX_DIMENSIONS = 6


@triton.jit
def threshold_kernel(
    input,
    output,
    mask,
    size,
    sizes,
    strides,
    threshold: tl.float64,
    SAVE_MASK: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    byte = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    index = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    inside = index < size
    # Dimensions come innermost first, in the order in which `output` lies in memory.
    offset = tl.zeros_like(index)
    rest = index
    for d in tl.static_range(len(sizes) - 1):
        offset += (rest % sizes[d]) * strides[d]
        rest = rest // sizes[d]
    offset += rest * strides[len(sizes) - 1]
    x = tl.load(input + offset, mask=inside, other=0.0).to(COMPUTE)
    # Written so that NaN is kept.
    below = x <= tl.full([1, 1], threshold, COMPUTE)
    y = tl.where(below, 0.0, x)
    tl.store(output + index, y.to(output.dtype.element_ty), mask=inside)
    if SAVE_MASK:
        bits = tl.where(below, 0, 1) << tl.arange(0, 8)[None, :]
        bits = tl.where(inside, bits, 0)
        tl.store(mask + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=byte * 8 < size)


@triton.jit
def threshold_backward_kernel(grad, mask, output, size, BLOCK: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    bit = tl.arange(0, 8)[None, :]
    index = byte[:, None] * 8 + bit
    inside = index < size
    packed = tl.load(mask + byte, mask=byte * 8 < size, other=0).to(tl.int32)
    kept = (packed[:, None] >> bit) & 1
    g = tl.load(grad + index, mask=inside & (kept != 0), other=0.0)
    tl.store(output + index, g, mask=inside)


def collapsed(input: Tensor, output: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of `output`, innermost in memory first, and strides of `input`; joined if possible."""
    order = sorted(range(output.dim()), key=output.stride)
    sizes, strides = [], []
    for d in order:
        size, stride = input.size(d), input.stride(d)
        if size == 1:
            continue
        if sizes and stride == sizes[-1] * strides[-1]:
            sizes[-1] *= size
        else:
            sizes.append(size)
            strides.append(stride)
    return (tuple(sizes), tuple(strides)) if sizes else ((1,), (1,))


def unsupported(input: Tensor, *_: object) -> list[str]:
    """Reasons why these kernels cannot take `input`; empty where they can."""
    reasons = refusals(input, DTYPES)
    sizes, _ = collapsed(input, torch.empty_like(input, device="meta"))
    if len(sizes) > MAX_DIMENSIONS:
        reasons.append(f"{len(sizes)} dimensions of input cannot be joined to {MAX_DIMENSIONS}")
    return reasons


def _threshold_into(input: Tensor, output: Tensor, threshold: float, save_mask: bool) -> Tensor:
    """Returns the mask. `output` may be `input`: a program reads its block before it writes it."""
    size = input.numel()
    mask = input.new_empty((size + 7) // 8 if save_mask else 0, dtype=torch.uint8)
    launch(
        threshold_kernel,
        triton.cdiv(size, BLOCK),
        input,
        output,
        mask,
        size,
        *collapsed(input, output),
        threshold,
        SAVE_MASK=save_mask,
        COMPUTE=compute_type(input.dtype),
        BLOCK=BLOCK,
        num_warps=8,
    )
    return mask


def threshold_forward(input: Tensor, threshold: float, save_mask: bool) -> tuple[Tensor, Tensor]:
    """Returns y and, if asked for, its mask: bit i % 8 of byte i // 8 is element i in memory."""
    output = torch.empty_like(input)
    return output, _threshold_into(input, output, threshold, save_mask)


def threshold_forward_(input: Tensor, threshold: float, save_mask: bool) -> Tensor:
    """Writes y over `input`, which is dense; returns the mask."""
    check_dense("input", input)
    return _threshold_into(input, input, threshold, save_mask)


def threshold_backward(grad: Tensor, mask: Tensor) -> Tensor:
    """Returns grad where the mask's bit is set and 0 elsewhere; `grad` is dense."""
    check_threshold_backward(grad, mask)
    output = torch.empty_like(grad)
    size = grad.numel()
    launch(
        threshold_backward_kernel,
        triton.cdiv(size, BLOCK),
        grad,
        mask,
        output,
        size,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return output


register(
    "threshold_forward(Tensor input, float threshold, bool save_mask)"
    " -> (Tensor output, Tensor mask)",
    threshold_forward,
)
register(
    "threshold_forward_(Tensor(a!) input, float threshold, bool save_mask) -> Tensor mask",
    threshold_forward_,
)
register(
    "threshold_backward(Tensor grad, Tensor mask) -> Tensor",
    threshold_backward,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Named calls whose launches the offline compilation builds."""
    for dtype in DTYPES if every else (torch.float64, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        x = torch.empty(4096, 1024, dtype=dtype, device="meta")
        mask = torch.empty(x.numel() // 8, dtype=torch.uint8, device="meta")
        yield f"{name} dense", partial(threshold_forward, x, 0.5, True)
        yield name, partial(threshold_backward, x, mask)
    yield "strided", partial(threshold_forward, x[:, ::2], 0.5, True)

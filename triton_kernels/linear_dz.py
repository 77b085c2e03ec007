"""dZ = dY * act'(saved), and its column sums, which are the bias gradient, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import compute_type, derivative
from .launch import launch, target_of
from .sums import ordered_sum


@triton.jit
def activation_backward_kernel(
    grad, saved, dz, partial, M, N, ROWS_PER_PROGRAM, grad_row, grad_column, parameter: tl.float64,
    ACTIVATION: tl.constexpr, HAS_DZ: tl.constexpr, HAS_SUM: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dz = grad * act'(saved), and sums of its columns over ROWS_PER_PROGRAM rows, in one pass."""
    octets = tl.cdiv(N, 8)
    tiles_n = tl.cdiv(N, BLOCK_N)
    part = tl.program_id(0) // tiles_n
    octet = tl.program_id(0) % tiles_n * (BLOCK_N // 8) + tl.arange(0, BLOCK_N // 8)
    # Columns are counted as (octet, bit), the way in which masks are stored.
    bit = tl.arange(0, 8)[None, None, :]
    n = octet.to(tl.int64)[None, :, None] * 8 + bit
    total = tl.zeros((BLOCK_M, BLOCK_N // 8, 8), COMPUTE)
    start = part.to(tl.int64) * ROWS_PER_PROGRAM
    for step in tl.range(0, ROWS_PER_PROGRAM, BLOCK_M):
        row = start + step + tl.arange(0, BLOCK_M)
        m = row[:, None, None]
        inside = (m < M) & (n < N)
        g = tl.load(grad + m * grad_row + n * grad_column, mask=inside, other=0.0).to(COMPUTE)
        if ACTIVATION == "relu" or ACTIVATION == "threshold" or ACTIVATION == "leaky_relu":
            mask = tl.load(
                saved + row[:, None] * octets + octet[None, :],
                mask=(row < M)[:, None] & (octet < octets)[None, :],
                other=0,
            ).to(tl.int32)
            keep = ((mask[:, :, None] >> bit) & 1) != 0
            if ACTIVATION == "leaky_relu":
                g = tl.where(keep, g, g * tl.full([1, 1, 1], parameter, COMPUTE))
            else:
                g = tl.where(keep, g, 0.0)
        elif ACTIVATION != "none":
            z = tl.load(saved + m * N + n, mask=inside, other=0.0).to(COMPUTE)
            g *= derivative(z, ACTIVATION)
        if HAS_DZ:
            tl.store(dz + m * N + n, g.to(dz.dtype.element_ty), mask=inside)
        if HAS_SUM:
            total += g
    if HAS_SUM:
        column = octet[:, None] * 8 + tl.arange(0, 8)[None, :]
        tl.store(partial + part.to(tl.int64) * N + column, tl.sum(total, axis=0), mask=column < N)


def activation_backward(
    grad: Tensor,
    saved: Tensor,
    activation: str,
    parameter: float,
    needs_dz: bool,
    needs_sum: bool,
) -> tuple[Tensor, Tensor | None]:
    """dz = grad * act'(saved), which is `grad` itself without an activation, and dz.sum(0)."""
    m, n = grad.shape
    has_dz = needs_dz and activation != "none"
    dz = grad.new_empty((m, n)) if has_dz else grad
    bias = grad.new_empty(n) if needs_sum else None
    if not (has_dz or needs_sum):
        return dz, bias
    interpreted = target_of(grad).interpreted
    block_m, block_n = (4, 16) if interpreted else (16, 128)
    # Rows a program: a function of the shape alone, so that the sums are the same on every device.
    rows = block_m * max(1, min(32, m * triton.cdiv(n, block_n) // (block_m * 512)))
    parts = triton.cdiv(m, rows)
    sums = torch.float64 if grad.dtype == torch.float64 else torch.float32
    partial = grad.new_empty((parts, n), dtype=sums) if needs_sum else grad
    launch(
        activation_backward_kernel,
        parts * triton.cdiv(n, block_n),
        *(grad, saved, dz, partial),
        *(m, n, rows),
        *grad.stride(),
        parameter,
        ACTIVATION=activation,
        HAS_DZ=has_dz,
        HAS_SUM=needs_sum,
        COMPUTE=compute_type(grad.dtype),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
    )
    if bias is not None:
        ordered_sum(partial, bias)
    return dz, bias

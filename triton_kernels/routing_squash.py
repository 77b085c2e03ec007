"""What follows a sum over in-capsules: its parts are added in order, then squashed."""

from __future__ import annotations

import triton
import triton.language as tl

from .squash import squash_factors
from .sums import ordered_parts


@triton.jit
def routing_squash_kernel(
    sums, bias, v, s, v_next, parts, rows, O, E, eps: tl.float64,
    HAS_BIAS: tl.constexpr, HAS_V: tl.constexpr, HAS_S: tl.constexpr, KIND: tl.constexpr,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """s = the sum of the parts, in order, + bias;  v_next = v + squash(s)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, BLOCK_E)
    inside = (row < rows)[:, None] & (e < E)[None, :]
    offset = row[:, None] * E + e[None, :]
    total = ordered_parts(sums, offset, inside, parts, rows * E)
    if HAS_BIAS:
        total += tl.load(bias + (row % O)[:, None] * E + e[None, :], mask=inside, other=0.0)
    if HAS_S:
        tl.store(s + offset, total, mask=inside)
    f, _ = squash_factors(tl.sum(total * total, axis=1), tl.full([1], eps, COMPUTE), KIND)
    squashed = f[:, None] * total
    if HAS_V:
        squashed += tl.load(v + offset, mask=inside, other=0.0)
    tl.store(v_next + offset, squashed, mask=inside)


@triton.jit
def routing_squash_backward_kernel(
    sums, s, r, s_grad, parts, rows, E, scale: tl.float64, eps: tl.float64,
    HAS_R: tl.constexpr, KEEP_R: tl.constexpr, KIND: tl.constexpr,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """s_grad = the gradient of s from that of v, R = r + scale times the sum of the parts."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, BLOCK_E)
    inside = (row < rows)[:, None] & (e < E)[None, :]
    offset = row[:, None] * E + e[None, :]
    g = ordered_parts(sums, offset, inside, parts, rows * E)
    g *= tl.full([1, 1], scale, COMPUTE)
    if HAS_R:
        g += tl.load(r + offset, mask=inside, other=0.0)
    if KEEP_R:
        tl.store(r + offset, g, mask=inside)
    x = tl.load(s + offset, mask=inside, other=0.0)
    f, h = squash_factors(tl.sum(x * x, axis=1), tl.full([1], eps, COMPUTE), KIND)
    along = h * tl.sum(x * g, axis=1)
    tl.store(s_grad + offset, f[:, None] * g + along[:, None] * x, mask=inside)

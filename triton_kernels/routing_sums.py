"""Sums over in-capsules: a program walks over a part of them, and parts are added in order later.

`routing_statistics_kernel` runs first where a softmax does not fit one tile: it spans several tiles
of out-capsules, or it is over the in-capsules.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .routing_tiles import (
    capsule_tile,
    in_capsule_tile,
    logits_gradient,
    logits_tile,
    mask_tile,
    softmax_tile,
    votes_tile,
    weight_tile,
)

# Below every logit, and finite: a difference of two infinite ones would be NaN.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def routing_sum_kernel(
    sums, couplings, u, weight, prior, mask, v, s_grad, statistics,
    B, I, O, E, D, I_PER_PART,
    u_b, u_i, u_d, weight_o, weight_i, weight_e, weight_d, prior_b, mask_b, scale: tl.float64,
    HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr, HAS_V: tl.constexpr, HAS_S_GRAD: tl.constexpr,
    HAS_COUPLINGS: tl.constexpr, SOFTMAX: tl.constexpr, LEAKY: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """sums[part] = the sum of c_ij votes_ij, or given s_grad of beta_ij votes_ij, over a part."""
    tiles_b = tl.cdiv(B, BLOCK_B)
    tiles_o = tl.cdiv(O, BLOCK_O)
    tile = tl.program_id(0) // tiles_b
    part = (tile // tiles_o).to(tl.int64)
    first = tile % tiles_o * BLOCK_O
    b = (tl.program_id(0) % tiles_b * BLOCK_B).to(tl.int64) + tl.arange(0, BLOCK_B)
    o = first + tl.arange(0, BLOCK_O)
    e = tl.arange(0, BLOCK_E)
    factor = tl.full([1, 1], scale, COMPUTE)
    total = tl.zeros((BLOCK_B, BLOCK_O, BLOCK_E), COMPUTE)
    v_tile = total
    s_tile = total
    if HAS_V:
        v_tile = capsule_tile(v, b, o, B, O, E, BLOCK_E)
    if HAS_S_GRAD:
        s_tile = capsule_tile(s_grad, b, o, B, O, E, BLOCK_E)
    for i in tl.range(part * I_PER_PART, tl.minimum((part + 1) * I_PER_PART, I)):
        u_tile = in_capsule_tile(u, b, i, B, D, u_b, u_i, u_d, BLOCK_D)
        w_tile = weight_tile(
            weight, i, first, O, E, D, weight_o, weight_i, weight_e, weight_d,
            BLOCK_O, BLOCK_E, BLOCK_D,
        )  # fmt: skip
        votes = votes_tile(u_tile, w_tile, COMPUTE, PRECISION, BLOCK_B, BLOCK_O, BLOCK_E)
        logits = logits_tile(
            votes, v_tile, prior, b, i, o, B, O, prior_b, factor, HAS_V, HAS_PRIOR, BLOCK_B, BLOCK_O
        )
        coefficient = softmax_tile(logits, statistics, b, i, o, B, I, O, SOFTMAX, LEAKY)
        multiplier = mask_tile(mask, b, i, B, mask_b, HAS_MASK, BLOCK_B, COMPUTE)
        if HAS_S_GRAD:
            coefficient = logits_gradient(
                votes, coefficient, s_tile, multiplier, statistics, b, i, o, B, I, O, SOFTMAX
            )
        else:
            coefficient *= multiplier
        if HAS_COUPLINGS:
            tl.store(
                couplings + (b[:, None] * I + i) * O + o[None, :],
                coefficient,
                mask=(b < B)[:, None] & (o < O)[None, :],
            )
        total += coefficient[:, :, None] * votes
    rows, columns = b[:, None, None], o[None, :, None]
    offset = ((part * B + rows) * O + columns) * E + e[None, None, :]
    inside = (rows < B) & (columns < O) & (e < E)[None, None, :]
    tl.store(sums + offset, total, mask=inside)


@triton.jit
def routing_statistics_kernel(
    partial, u, weight, prior, mask, v, s_grad,
    B, I, O, E, D, I_PER_PART,
    u_b, u_i, u_d, weight_o, weight_i, weight_e, weight_d, prior_b, mask_b, scale: tl.float64,
    HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr, HAS_V: tl.constexpr, HAS_S_GRAD: tl.constexpr,
    SOFTMAX: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Statistics of what one program sees of each softmax: its highest logit, the sum of
    p = exp(logit - highest), and the sum of p times the gradient of the coupling coefficient.

    partial is [tiles of out-capsules, 3, B, I], or [parts, 3, B, O] for a softmax "in".
    """
    tiles_b = tl.cdiv(B, BLOCK_B)
    tiles_o = tl.cdiv(O, BLOCK_O)
    tile = tl.program_id(0) // tiles_b
    part = (tile // tiles_o).to(tl.int64)
    first = tile % tiles_o * BLOCK_O
    b = (tl.program_id(0) % tiles_b * BLOCK_B).to(tl.int64) + tl.arange(0, BLOCK_B)
    o = first + tl.arange(0, BLOCK_O)
    factor = tl.full([1, 1], scale, COMPUTE)
    v_tile = tl.zeros((BLOCK_B, BLOCK_O, BLOCK_E), COMPUTE)
    s_tile = v_tile
    if HAS_V:
        v_tile = capsule_tile(v, b, o, B, O, E, BLOCK_E)
    if HAS_S_GRAD:
        s_tile = capsule_tile(s_grad, b, o, B, O, E, BLOCK_E)
    highest = tl.full((BLOCK_B, BLOCK_O), LOWEST, COMPUTE)
    total = tl.zeros((BLOCK_B, BLOCK_O), COMPUTE)
    weighted = tl.zeros((BLOCK_B, BLOCK_O), COMPUTE)
    for i in tl.range(part * I_PER_PART, tl.minimum((part + 1) * I_PER_PART, I)):
        u_tile = in_capsule_tile(u, b, i, B, D, u_b, u_i, u_d, BLOCK_D)
        w_tile = weight_tile(
            weight, i, first, O, E, D, weight_o, weight_i, weight_e, weight_d,
            BLOCK_O, BLOCK_E, BLOCK_D,
        )  # fmt: skip
        votes = votes_tile(u_tile, w_tile, COMPUTE, PRECISION, BLOCK_B, BLOCK_O, BLOCK_E)
        logits = logits_tile(
            votes, v_tile, prior, b, i, o, B, O, prior_b, factor, HAS_V, HAS_PRIOR, BLOCK_B, BLOCK_O
        )
        c_grad = tl.zeros((BLOCK_B, BLOCK_O), COMPUTE)
        if HAS_S_GRAD:
            multiplier = mask_tile(mask, b, i, B, mask_b, HAS_MASK, BLOCK_B, COMPUTE)
            c_grad = multiplier * tl.sum(votes * s_tile, axis=2)
        if SOFTMAX == "in":
            before = highest
            highest = tl.maximum(before, logits)
            shrink = tl.exp(before - highest)
            p = tl.exp(logits - highest)
            total = total * shrink + p
            weighted = weighted * shrink + p * c_grad
        else:
            logits = tl.where((o < O)[None, :], logits, float("-inf"))
            top = tl.maximum(tl.max(logits, axis=1), LOWEST)
            p = tl.exp(logits - top[:, None])
            slot = (tile % tiles_o).to(tl.int64) * 3
            tl.store(partial + (slot * B + b) * I + i, top, mask=b < B)
            tl.store(partial + ((slot + 1) * B + b) * I + i, tl.sum(p, axis=1), mask=b < B)
            share = tl.sum(p * c_grad, axis=1)
            tl.store(partial + ((slot + 2) * B + b) * I + i, share, mask=b < B)
    if SOFTMAX == "in":
        slot = part * 3
        inside = (b < B)[:, None] & (o < O)[None, :]
        row = b[:, None]
        tl.store(partial + (slot * B + row) * O + o[None, :], highest, mask=inside)
        tl.store(partial + ((slot + 1) * B + row) * O + o[None, :], total, mask=inside)
        tl.store(partial + ((slot + 2) * B + row) * O + o[None, :], weighted, mask=inside)


@triton.jit
def combine_statistics_kernel(
    partial, statistics, parts, size, LEAKY: tl.constexpr, BLOCK: tl.constexpr
):
    """Puts the parts of each softmax together, in order; the third statistic becomes a mean."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    # A leaky softmax has one more logit, 0, whose coefficient is dropped.
    total = tl.full((BLOCK,), 1.0 if LEAKY else 0.0, partial.dtype.element_ty)
    highest = tl.full((BLOCK,), 0.0 if LEAKY else LOWEST, partial.dtype.element_ty)
    weighted = tl.zeros((BLOCK,), partial.dtype.element_ty)
    pointers = partial + index
    plane = tl.zeros((BLOCK,), tl.int64) + size
    for _ in tl.range(0, parts):
        before = highest
        there = tl.load(pointers, mask=inside, other=0.0)
        highest = tl.maximum(before, there)
        shrink = tl.exp(before - highest)
        grow = tl.exp(there - highest)
        total = total * shrink + grow * tl.load(pointers + plane, mask=inside, other=0.0)
        there = tl.load(pointers + 2 * plane, mask=inside, other=0.0)
        weighted = weighted * shrink + grow * there
        pointers += 3 * plane
    tl.store(statistics + index, highest, mask=inside)
    tl.store(statistics + plane + index, total, mask=inside)
    tl.store(statistics + 2 * plane + index, weighted / total, mask=inside)

"""What one program of a routing pass holds: samples b, a tile of out-capsules o, one in-capsule i.

Votes of the tile are one small product u_i [BLOCK_B, D] @ W_i [D, BLOCK_O * E]; coupling
coefficients and their gradients are made of it in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def in_capsule_tile(u, b, i, B, D, u_b, u_i, u_d, BLOCK_D: tl.constexpr):
    """u_i as [BLOCK_B, D], padded with 0."""
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    return tl.load(
        u + b[:, None] * u_b + i * u_i + (d * u_d)[None, :],
        mask=(b < B)[:, None] & (d < D)[None, :],
        other=0.0,
    )


@triton.jit
def weight_tile(
    weight, i, first, O, E, D, weight_o, weight_i, weight_e, weight_d,
    BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """W_i as [BLOCK_O * E, D], padded with 0, from out-capsule `first` on."""
    oe = tl.arange(0, BLOCK_O * BLOCK_E).to(tl.int64)
    o, e = first + oe // BLOCK_E, oe % BLOCK_E
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    rows = o * weight_o + i * weight_i + e * weight_e
    return tl.load(
        weight + rows[:, None] + (d * weight_d)[None, :],
        mask=((o < O) & (e < E))[:, None] & (d < D)[None, :],
        other=0.0,
    )


@triton.jit
def votes_tile(
    u_tile, w_tile, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    votes = tl.dot(u_tile, w_tile.T, input_precision=PRECISION, out_dtype=COMPUTE)
    return tl.reshape(votes, (BLOCK_B, BLOCK_O, BLOCK_E))


@triton.jit
def capsule_tile(x, b, o, B, O, E, BLOCK_E: tl.constexpr):
    """[BLOCK_B, BLOCK_O, E] of a contiguous [B, O, E], padded with 0."""
    e = tl.arange(0, BLOCK_E)[None, None, :]
    rows, columns = b[:, None, None], o[None, :, None]
    inside = (rows < B) & (columns < O) & (e < E)
    return tl.load(x + (rows * O + columns) * E + e, mask=inside, other=0.0)


@triton.jit
def logits_tile(
    votes, v_tile, prior, b, i, o, B, O, prior_b, scale,
    HAS_V: tl.constexpr, HAS_PRIOR: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """The routing logits prior + scale <votes, v>, [BLOCK_B, BLOCK_O]."""
    logits = tl.zeros((BLOCK_B, BLOCK_O), votes.dtype)
    if HAS_V:
        logits += scale * tl.sum(votes * v_tile, axis=2)
    if HAS_PRIOR:
        logits += tl.load(
            prior + b[:, None] * prior_b + i * O + o[None, :],
            mask=(b < B)[:, None] & (o < O)[None, :],
            other=0.0,
        )
    return logits


@triton.jit
def statistic(statistics, which, b, i, o, B, I, O, SOFTMAX: tl.constexpr):
    """One statistic of the softmax that (b, i) or (b, o) belongs to, as [BLOCK_B, 1 or BLOCK_O]."""
    rows = which * B + b[:, None]
    if SOFTMAX == "in":
        place = rows * O + o[None, :]
        inside = (b < B)[:, None] & (o < O)[None, :]
    else:
        place = rows * I + i
        inside = (b < B)[:, None]
    return tl.load(statistics + place, mask=inside, other=1.0)


@triton.jit
def softmax_tile(logits, statistics, b, i, o, B, I, O, SOFTMAX: tl.constexpr, LEAKY: tl.constexpr):
    """The softmax, before the mask: in the tile itself, or by the statistics of an earlier pass."""
    if SOFTMAX == "tile":
        logits = tl.where((o < O)[None, :], logits, float("-inf"))
        highest = tl.max(logits, axis=1)
        if LEAKY:
            highest = tl.maximum(highest, 0.0)
        p = tl.exp(logits - highest[:, None])
        total = tl.sum(p, axis=1)
        if LEAKY:
            total += tl.exp(-highest)
        p = p / total[:, None]
    else:
        highest = statistic(statistics, 0, b, i, o, B, I, O, SOFTMAX)
        total = statistic(statistics, 1, b, i, o, B, I, O, SOFTMAX)
        # Out-capsules that are padding would overflow where all logits are far below 0.
        p = tl.where((o < O)[None, :], tl.exp(logits - highest) / total, 0.0)
    return p


@triton.jit
def mask_tile(mask, b, i, B, mask_b, HAS_MASK: tl.constexpr, BLOCK_B: tl.constexpr, DTYPE):
    """The mask of an in-capsule, [BLOCK_B, 1]."""
    multiplier = tl.full((BLOCK_B,), 1.0, DTYPE)
    if HAS_MASK:
        multiplier = tl.load(mask + b * mask_b + i, mask=b < B, other=0.0)
    return multiplier[:, None]


@triton.jit
def logits_gradient(
    votes, softmax, s_tile, multiplier, statistics, b, i, o, B, I, O, SOFTMAX: tl.constexpr
):
    """beta, the gradient of the routing logits, [BLOCK_B, BLOCK_O]."""
    c_grad = multiplier * tl.sum(votes * s_tile, axis=2)
    if SOFTMAX == "tile":
        mean = tl.sum(softmax * c_grad, axis=1)[:, None]
    else:
        mean = statistic(statistics, 2, b, i, o, B, I, O, SOFTMAX)
    return softmax * (c_grad - mean)

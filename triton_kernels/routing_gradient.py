"""The last kernel of the backward pass: gradients of in-capsules, weights and prior logits."""

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


@triton.jit
def routing_gradient_kernel(
    u_grad, weight_grad, prior_grad, u, weight, prior, mask, v, s_grad, statistics,
    B, I, O, E, D, iterations,
    u_b, u_i, u_d, weight_o, weight_i, weight_e, weight_d, prior_b, mask_b, scale: tl.float64,
    grad_o, grad_i, grad_e, grad_d, STATISTICS,
    HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr, HAS_V: tl.constexpr,
    DETACH: tl.constexpr, NEEDS_U: tl.constexpr, NEEDS_WEIGHT: tl.constexpr,
    PRIOR_GRAD: tl.constexpr, SOFTMAX: tl.constexpr, LEAKY: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns an in-capsule and a tile of out-capsules, and walks over the batch.

    The gradient of its votes is the sum over iterations of c_ij s_grad_j + scale beta_ij V_j.
    u_grad [tiles of out-capsules, B, I, D] is a partial sum; v and s_grad [iterations, B, O, E];
    an iteration has STATISTICS statistics.
    """
    tiles_o = tl.cdiv(O, BLOCK_O)
    i = (tl.program_id(0) // tiles_o).to(tl.int64)
    tile = (tl.program_id(0) % tiles_o).to(tl.int64)
    first = tile * BLOCK_O
    o = first + tl.arange(0, BLOCK_O)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    factor = tl.full([1, 1], scale, COMPUTE)
    w_tile = weight_tile(
        weight, i, first, O, E, D, weight_o, weight_i, weight_e, weight_d, BLOCK_O, BLOCK_E, BLOCK_D
    )
    w_grad = tl.zeros((BLOCK_O * BLOCK_E, BLOCK_D), COMPUTE)
    shared_prior_grad = tl.zeros((BLOCK_O,), COMPUTE)
    for start in tl.range(0, B, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B).to(tl.int64)
        u_tile = in_capsule_tile(u, b, i, B, D, u_b, u_i, u_d, BLOCK_D)
        votes = votes_tile(u_tile, w_tile, COMPUTE, PRECISION, BLOCK_B, BLOCK_O, BLOCK_E)
        multiplier = mask_tile(mask, b, i, B, mask_b, HAS_MASK, BLOCK_B, COMPUTE)
        x = tl.zeros((BLOCK_B, BLOCK_O, BLOCK_E), COMPUTE)
        beta_sum = tl.zeros((BLOCK_B, BLOCK_O), COMPUTE)
        iteration = b
        now = statistics
        for t in tl.range(0, iterations):
            # Rows past the batch lie in the next iteration, so they are sent past the last one.
            row = tl.where(b < B, iteration, iterations * B)
            s_tile = capsule_tile(s_grad, row, o, iterations * B, O, E, BLOCK_E)
            v_tile = s_tile
            if HAS_V:
                v_tile = capsule_tile(v, row, o, iterations * B, O, E, BLOCK_E)
            logits = logits_tile(
                votes, v_tile, prior, b, i, o, B, O, prior_b, factor, HAS_V, HAS_PRIOR,
                BLOCK_B, BLOCK_O,
            )  # fmt: skip
            softmax = softmax_tile(logits, now, b, i, o, B, I, O, SOFTMAX, LEAKY)
            direct = (softmax * multiplier)[:, :, None] * s_tile
            beta = logits_gradient(
                votes, softmax, s_tile, multiplier, now, b, i, o, B, I, O, SOFTMAX
            )
            beta_sum += beta
            if DETACH:
                x += tl.where(t == iterations - 1, direct, 0.0)
            elif HAS_V:
                x += direct + (factor * beta)[:, :, None] * v_tile
            else:
                x += direct
            iteration += B
            now += STATISTICS
        flat = tl.reshape(x, (BLOCK_B, BLOCK_O * BLOCK_E))
        if NEEDS_U:
            gradient = tl.dot(flat, w_tile, input_precision=PRECISION, out_dtype=COMPUTE)
            tl.store(
                u_grad + ((tile * B + b[:, None]) * I + i) * D + d[None, :],
                gradient,
                mask=(b < B)[:, None] & (d < D)[None, :],
            )
        if NEEDS_WEIGHT:
            w_grad = tl.dot(flat.T, u_tile, w_grad, input_precision=PRECISION, out_dtype=COMPUTE)
        if PRIOR_GRAD == "batched":
            tl.store(
                prior_grad + (b[:, None] * I + i) * O + o[None, :],
                beta_sum,
                mask=(b < B)[:, None] & (o < O)[None, :],
            )
        elif PRIOR_GRAD == "shared":
            kept = tl.where((b < B)[:, None], beta_sum, 0.0)
            shared_prior_grad += tl.sum(kept, axis=0)
    if NEEDS_WEIGHT:
        oe = tl.arange(0, BLOCK_O * BLOCK_E).to(tl.int64)
        to, te = first + oe // BLOCK_E, oe % BLOCK_E
        rows = to * grad_o + i * grad_i + te * grad_e
        tl.store(
            weight_grad + rows[:, None] + (d * grad_d)[None, :],
            w_grad,
            mask=((to < O) & (te < E))[:, None] & (d < D)[None, :],
        )
    if PRIOR_GRAD == "shared":
        tl.store(prior_grad + i * O + o, shared_prior_grad, mask=o < O)

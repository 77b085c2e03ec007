"""Dynamic routing between capsules: the votes are computed anew in every pass, never stored.

A pass walks over the in-capsules i of its part. Votes of a tile of samples are one small product
u_i [BLOCK_B, D] @ W_i [D, O * E]; coupling coefficients, weighted sums and gradients are made of it
in registers. Sums over i are kept for each part and added in order by the next kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import compute_type
from .launch import Target, cannot_run_on, launch, register, target_of
from .linear import float32_precision, ordered_sum
from .squash import squash_factors

DTYPES = (torch.float64, torch.float32)
# The tile [16 samples, out-capsules, out-dimension] must fit the registers.
WIDEST = 1024


@triton.jit
def weight_tile(
    weight, i, O, E, D, weight_o, weight_i, weight_e, weight_d,
    BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """W_i as [O * E, D], padded with 0."""
    oe = tl.arange(0, BLOCK_O * BLOCK_E).to(tl.int64)
    o, e = oe // BLOCK_E, oe % BLOCK_E
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    rows = o * weight_o + i * weight_i + e * weight_e
    return tl.load(
        weight + rows[:, None] + (d * weight_d)[None, :],
        mask=((o < O) & (e < E))[:, None] & (d < D)[None, :],
        other=0.0,
    )


@triton.jit
def capsule_tile(
    x, b, B, O, E, BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr
):
    """[BLOCK_B, O, E] of a contiguous [B, O, E], padded with 0."""
    o = tl.arange(0, BLOCK_O)[None, :, None]
    e = tl.arange(0, BLOCK_E)[None, None, :]
    rows = b[:, None, None]
    return tl.load(x + (rows * O + o) * E + e, mask=(rows < B) & (o < O) & (e < E), other=0.0)


@triton.jit
def softmax_tile(
    votes, v, prior, b, i, B, O, prior_b, prior_i, prior_o, scale,
    HAS_V: tl.constexpr, HAS_PRIOR: tl.constexpr, LEAKY: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """softmax(prior + scale <votes, v>) over the out-capsules, [BLOCK_B, O], before the mask."""
    o = tl.arange(0, BLOCK_O)
    logits = tl.zeros((BLOCK_B, BLOCK_O), votes.dtype)
    if HAS_V:
        logits += scale * tl.sum(votes * v, axis=2)
    if HAS_PRIOR:
        logits += tl.load(
            prior + b[:, None] * prior_b + i * prior_i + o[None, :] * prior_o,
            mask=(b < B)[:, None] & (o < O)[None, :],
            other=0.0,
        )
    logits = tl.where((o < O)[None, :], logits, float("-inf"))
    highest = tl.max(logits, axis=1)
    if LEAKY:
        highest = tl.maximum(highest, 0.0)
    p = tl.exp(logits - highest[:, None])
    total = tl.sum(p, axis=1)
    if LEAKY:
        total += tl.exp(-highest)
    return p / total[:, None]


@triton.jit
def routing_forward_kernel(
    u, weight, v, prior, mask, sums, couplings,
    B, I, O, E, D, I_PER_PART,
    u_b, u_i, u_d, weight_o, weight_i, weight_e, weight_d, prior_b, prior_i, prior_o,
    mask_b, mask_i, scale: tl.float64,
    HAS_V: tl.constexpr, HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_COUPLINGS: tl.constexpr, LEAKY: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """sums[part] = the sum of c_ij votes_ij over the in-capsules of a part."""
    tiles_b = tl.cdiv(B, BLOCK_B)
    part = (tl.program_id(0) // tiles_b).to(tl.int64)
    b = (tl.program_id(0) % tiles_b * BLOCK_B).to(tl.int64) + tl.arange(0, BLOCK_B)
    o = tl.arange(0, BLOCK_O)
    e = tl.arange(0, BLOCK_E)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    factor = tl.full([1, 1], scale, COMPUTE)
    agreed = tl.zeros((BLOCK_B, BLOCK_O, BLOCK_E), COMPUTE)
    if HAS_V:
        agreed = capsule_tile(v, b, B, O, E, BLOCK_B, BLOCK_O, BLOCK_E)
    total = tl.zeros((BLOCK_B, BLOCK_O, BLOCK_E), COMPUTE)
    for i in tl.range(part * I_PER_PART, tl.minimum((part + 1) * I_PER_PART, I)):
        u_tile = tl.load(
            u + b[:, None] * u_b + i * u_i + (d * u_d)[None, :],
            mask=(b < B)[:, None] & (d < D)[None, :],
            other=0.0,
        )
        w_tile = weight_tile(
            weight, i, O, E, D, weight_o, weight_i, weight_e, weight_d, BLOCK_O, BLOCK_E, BLOCK_D
        )
        votes = tl.dot(u_tile, w_tile.T, input_precision=PRECISION, out_dtype=COMPUTE)
        votes = tl.reshape(votes, (BLOCK_B, BLOCK_O, BLOCK_E))
        c = softmax_tile(
            votes, agreed, prior, b, i, B, O, prior_b, prior_i, prior_o, factor,
            HAS_V, HAS_PRIOR, LEAKY, BLOCK_B, BLOCK_O,
        )  # fmt: skip
        if HAS_MASK:
            c *= tl.load(mask + b * mask_b + i * mask_i, mask=b < B, other=0.0)[:, None]
        if HAS_COUPLINGS:
            tl.store(
                couplings + (b[:, None] * I + i) * O + o[None, :],
                c,
                mask=(b < B)[:, None] & (o < O)[None, :],
            )
        total += c[:, :, None] * votes
    rows = b[:, None, None]
    offset = ((part * B + rows) * O + o[None, :, None]) * E + e[None, None, :]
    inside = (rows < B) & (o < O)[None, :, None] & (e < E)[None, None, :]
    tl.store(sums + offset, total, mask=inside)


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
    total = tl.zeros((ROWS, BLOCK_E), COMPUTE)
    pointers = sums + offset
    for _ in tl.range(0, parts):
        total += tl.load(pointers, mask=inside, other=0.0)
        pointers += rows * E
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
    g = tl.zeros((ROWS, BLOCK_E), COMPUTE)
    pointers = sums + offset
    for _ in tl.range(0, parts):
        g += tl.load(pointers, mask=inside, other=0.0)
        pointers += rows * E
    g *= tl.full([1, 1], scale, COMPUTE)
    if HAS_R:
        g += tl.load(r + offset, mask=inside, other=0.0)
    if KEEP_R:
        tl.store(r + offset, g, mask=inside)
    x = tl.load(s + offset, mask=inside, other=0.0)
    f, h = squash_factors(tl.sum(x * x, axis=1), tl.full([1], eps, COMPUTE), KIND)
    along = h * tl.sum(x * g, axis=1)
    tl.store(s_grad + offset, f[:, None] * g + along[:, None] * x, mask=inside)


@triton.jit
def coupling_gradient(votes, softmax, s_grad, multiplier, BLOCK_B: tl.constexpr):
    """beta: the gradient of the routing logits, [BLOCK_B, O]."""
    c_grad = multiplier[:, None] * tl.sum(votes * s_grad, axis=2)
    return softmax * (c_grad - tl.sum(softmax * c_grad, axis=1)[:, None])


@triton.jit
def routing_feedback_kernel(
    u, weight, v, prior, mask, s_grad, sums,
    B, I, O, E, D, I_PER_PART,
    u_b, u_i, u_d, weight_o, weight_i, weight_e, weight_d, prior_b, prior_i, prior_o,
    mask_b, mask_i, scale: tl.float64,
    HAS_V: tl.constexpr, HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr, LEAKY: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """sums[part] = the sum of beta_ij votes_ij over the in-capsules of a part."""
    tiles_b = tl.cdiv(B, BLOCK_B)
    part = (tl.program_id(0) // tiles_b).to(tl.int64)
    b = (tl.program_id(0) % tiles_b * BLOCK_B).to(tl.int64) + tl.arange(0, BLOCK_B)
    o = tl.arange(0, BLOCK_O)
    e = tl.arange(0, BLOCK_E)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    factor = tl.full([1, 1], scale, COMPUTE)
    agreed = tl.zeros((BLOCK_B, BLOCK_O, BLOCK_E), COMPUTE)
    if HAS_V:
        agreed = capsule_tile(v, b, B, O, E, BLOCK_B, BLOCK_O, BLOCK_E)
    s_tile = capsule_tile(s_grad, b, B, O, E, BLOCK_B, BLOCK_O, BLOCK_E)
    total = tl.zeros((BLOCK_B, BLOCK_O, BLOCK_E), COMPUTE)
    multiplier = tl.full((BLOCK_B,), 1.0, COMPUTE)
    for i in tl.range(part * I_PER_PART, tl.minimum((part + 1) * I_PER_PART, I)):
        u_tile = tl.load(
            u + b[:, None] * u_b + i * u_i + (d * u_d)[None, :],
            mask=(b < B)[:, None] & (d < D)[None, :],
            other=0.0,
        )
        w_tile = weight_tile(
            weight, i, O, E, D, weight_o, weight_i, weight_e, weight_d, BLOCK_O, BLOCK_E, BLOCK_D
        )
        votes = tl.dot(u_tile, w_tile.T, input_precision=PRECISION, out_dtype=COMPUTE)
        votes = tl.reshape(votes, (BLOCK_B, BLOCK_O, BLOCK_E))
        softmax = softmax_tile(
            votes, agreed, prior, b, i, B, O, prior_b, prior_i, prior_o, factor,
            HAS_V, HAS_PRIOR, LEAKY, BLOCK_B, BLOCK_O,
        )  # fmt: skip
        if HAS_MASK:
            multiplier = tl.load(mask + b * mask_b + i * mask_i, mask=b < B, other=0.0)
        beta = coupling_gradient(votes, softmax, s_tile, multiplier, BLOCK_B)
        total += beta[:, :, None] * votes
    rows = b[:, None, None]
    offset = ((part * B + rows) * O + o[None, :, None]) * E + e[None, None, :]
    inside = (rows < B) & (o < O)[None, :, None] & (e < E)[None, None, :]
    tl.store(sums + offset, total, mask=inside)


@triton.jit
def routing_gradient_kernel(
    u, weight, v, prior, mask, s_grad, u_grad, weight_grad, prior_grad,
    B, I, O, E, D, first, iterations,
    u_b, u_i, u_d, weight_o, weight_i, weight_e, weight_d, prior_b, prior_i, prior_o,
    mask_b, mask_i, grad_o, grad_i, grad_e, grad_d, scale: tl.float64,
    HAS_V: tl.constexpr, HAS_PRIOR: tl.constexpr, HAS_MASK: tl.constexpr, LEAKY: tl.constexpr,
    DETACH: tl.constexpr, NEEDS_U: tl.constexpr, NEEDS_WEIGHT: tl.constexpr,
    PRIOR_GRAD: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of one in-capsule: one program owns it and walks over the batch.

    The gradient of its votes is the sum over iterations of c_ij s_grad_j + scale beta_ij V_j.
    """
    i = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK_O)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    oe = tl.arange(0, BLOCK_O * BLOCK_E).to(tl.int64)
    factor = tl.full([1, 1], scale, COMPUTE)
    w_tile = weight_tile(
        weight, i, O, E, D, weight_o, weight_i, weight_e, weight_d, BLOCK_O, BLOCK_E, BLOCK_D
    )
    w_grad = tl.zeros((BLOCK_O * BLOCK_E, BLOCK_D), COMPUTE)
    shared_prior_grad = tl.zeros((BLOCK_O,), COMPUTE)
    for start in tl.range(0, B, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B).to(tl.int64)
        inside_u = (b < B)[:, None] & (d < D)[None, :]
        u_tile = tl.load(
            u + b[:, None] * u_b + i * u_i + (d * u_d)[None, :], mask=inside_u, other=0.0
        )
        votes = tl.dot(u_tile, w_tile.T, input_precision=PRECISION, out_dtype=COMPUTE)
        votes = tl.reshape(votes, (BLOCK_B, BLOCK_O, BLOCK_E))
        multiplier = tl.full((BLOCK_B,), 1.0, COMPUTE)
        if HAS_MASK:
            multiplier = tl.load(mask + b * mask_b + i * mask_i, mask=b < B, other=0.0)
        x = tl.zeros((BLOCK_B, BLOCK_O, BLOCK_E), COMPUTE)
        logit_grad = tl.zeros((BLOCK_B, BLOCK_O), COMPUTE)
        iteration = b + first * B
        for t in tl.range(first, iterations):
            # Rows past the batch lie in the next iteration, so they are sent past the last one.
            row = tl.where(b < B, iteration, iterations * B)
            s_tile = capsule_tile(s_grad, row, iterations * B, O, E, BLOCK_B, BLOCK_O, BLOCK_E)
            agreed = s_tile
            if HAS_V:
                agreed = capsule_tile(v, row, iterations * B, O, E, BLOCK_B, BLOCK_O, BLOCK_E)
            softmax = softmax_tile(
                votes, agreed, prior, b, i, B, O, prior_b, prior_i, prior_o, factor,
                HAS_V, HAS_PRIOR, LEAKY, BLOCK_B, BLOCK_O,
            )  # fmt: skip
            direct = (softmax * multiplier[:, None])[:, :, None] * s_tile
            beta = coupling_gradient(votes, softmax, s_tile, multiplier, BLOCK_B)
            logit_grad += beta
            if DETACH:
                x += tl.where(t == iterations - 1, direct, 0.0)
            elif HAS_V:
                x += direct + (factor * beta)[:, :, None] * agreed
            else:
                x += direct
            iteration += B
        flat = tl.reshape(x, (BLOCK_B, BLOCK_O * BLOCK_E))
        if NEEDS_U:
            gradient = tl.dot(flat, w_tile, input_precision=PRECISION, out_dtype=COMPUTE)
            tl.store(u_grad + (b[:, None] * I + i) * D + d[None, :], gradient, mask=inside_u)
        if NEEDS_WEIGHT:
            w_grad = tl.dot(flat.T, u_tile, w_grad, input_precision=PRECISION, out_dtype=COMPUTE)
        if PRIOR_GRAD == "batched":
            tl.store(
                prior_grad + (b[:, None] * I + i) * O + o[None, :],
                logit_grad,
                mask=(b < B)[:, None] & (o < O)[None, :],
            )
        elif PRIOR_GRAD == "shared":
            kept = tl.where((b < B)[:, None], logit_grad, 0.0)
            shared_prior_grad += tl.sum(kept, axis=0)
    if NEEDS_WEIGHT:
        to, te = oe // BLOCK_E, oe % BLOCK_E
        rows = to * grad_o + i * grad_i + te * grad_e
        tl.store(
            weight_grad + rows[:, None] + (d * grad_d)[None, :],
            w_grad,
            mask=((to < O) & (te < E))[:, None] & (d < D)[None, :],
        )
    if PRIOR_GRAD == "shared":
        tl.store(prior_grad + i * O + o, shared_prior_grad, mask=o < O)


class Routing:
    """The arguments that every pass of one call shares."""

    def __init__(
        self,
        u: Tensor,
        weight: Tensor,
        prior: Tensor | None,
        mask: Tensor | None,
        leaky: bool,
        scale: float,
        coupling_dim: str,
    ) -> None:
        if reasons := unsupported(u, weight, coupling_dim):
            raise ValueError("; ".join(reasons))
        self.u, self.weight, self.prior, self.mask, self.scale = u, weight, prior, mask, scale
        b, i, d = u.shape
        o, e = weight.size(0), weight.size(-2)
        self.sizes = (b, i, o, e, d)
        # A weight that in-capsules share, a prior that samples share: stride 0.
        shared = weight if weight.dim() == 4 else weight.unsqueeze(1).expand(o, i, e, d)
        self.strides = (
            *u.stride(),
            *shared.stride(),
            *((0, 0, 0) if prior is None else prior.expand(b, i, o).stride()),
            *((0, 0) if mask is None else mask.expand(b, i).stride()),
        )
        out = triton.next_power_of_2(o), triton.next_power_of_2(e)
        target = target_of(u)
        self.block_b = 16
        tiles = max(1, triton.cdiv(b, self.block_b))
        # Enough programs for every processor, each with some in-capsules to walk over.
        parts = min(i, max(1, 4 * target.processors // tiles), 256)
        self.part = triton.cdiv(i, max(1, parts))
        self.parts = triton.cdiv(i, max(1, self.part))
        self.options = {
            "HAS_PRIOR": prior is not None,
            "HAS_MASK": mask is not None,
            "LEAKY": leaky,
            "COMPUTE": compute_type(u.dtype),
            "PRECISION": float32_precision() if u.dtype == torch.float32 else "ieee",
            "BLOCK_B": self.block_b,
            "BLOCK_O": out[0],
            "BLOCK_E": out[1],
            # tl.dot sums over 16 elements or more.
            "BLOCK_D": max(16, triton.next_power_of_2(d)),
            "num_stages": 2,
        }
        # About 32 numbers of a tile a thread: float32 then stays in registers.
        self.warps = min(16, max(4, out[0] * out[1] * u.itemsize // 256))
        block = out[1]
        self.rows = {
            "ROWS": max(1, 512 // block),
            "BLOCK_E": block,
            "COMPUTE": compute_type(u.dtype),
        }

    def given(self, tensor: Tensor | None) -> Tensor:
        """An argument that is there, or one that its kernel will not look at."""
        return self.u if tensor is None else tensor

    def weighted_sums(self, v: Tensor | None, couplings: Tensor | None) -> Tensor:
        """[parts, B, O, E]: sums of c_ij votes_ij; writes the coupling coefficients if given."""
        b, _, o, e, _ = self.sizes
        sums = self.u.new_empty((self.parts, b, o, e))
        launch(
            routing_forward_kernel,
            self.parts * triton.cdiv(b, self.block_b),
            *(self.u, self.weight, self.given(v), self.given(self.prior), self.given(self.mask)),
            *(sums, self.given(couplings)),
            *self.sizes,
            self.part,
            *self.strides,
            self.scale,
            HAS_V=v is not None,
            HAS_COUPLINGS=couplings is not None,
            num_warps=self.warps,
            **self.options,
        )
        return sums

    def feedback(self, v: Tensor | None, s_grad: Tensor) -> Tensor:
        """[parts, B, O, E]: sums of beta_ij votes_ij."""
        b, _, o, e, _ = self.sizes
        sums = self.u.new_empty((self.parts, b, o, e))
        launch(
            routing_feedback_kernel,
            self.parts * triton.cdiv(b, self.block_b),
            *(self.u, self.weight, self.given(v), self.given(self.prior), self.given(self.mask)),
            *(s_grad, sums),
            *self.sizes,
            self.part,
            *self.strides,
            self.scale,
            HAS_V=v is not None,
            num_warps=self.warps,
            **self.options,
        )
        return sums

    def squash(
        self,
        sums: Tensor,
        bias: Tensor | None,
        v: Tensor | None,
        s: Tensor | None,
        v_next: Tensor,
        kind: str,
        eps: float,
    ) -> None:
        """s = sums.sum(0) + bias;  v_next = v + squash(s)."""
        b, _, o, e, _ = self.sizes
        launch(
            routing_squash_kernel,
            triton.cdiv(b * o, self.rows["ROWS"]),
            *(sums, self.given(bias), self.given(v), self.given(s), v_next),
            *(sums.size(0), b * o, o, e, eps),
            HAS_BIAS=bias is not None,
            HAS_V=v is not None,
            HAS_S=s is not None,
            KIND=kind,
            **self.rows,
        )

    def squash_backward(
        self,
        sums: Tensor,
        scale: float,
        s: Tensor,
        r: Tensor | None,
        grown: bool,
        s_grad: Tensor,
        kind: str,
        eps: float,
    ) -> None:
        """s_grad = squash'(s) of r (if grown) + scale * sums.sum(0), which r keeps."""
        b, _, o, e, _ = self.sizes
        launch(
            routing_squash_backward_kernel,
            triton.cdiv(b * o, self.rows["ROWS"]),
            *(sums, s, self.given(r), s_grad, sums.size(0), b * o, e, scale, eps),
            HAS_R=grown,
            KEEP_R=r is not None,
            KIND=kind,
            **self.rows,
        )

    def gradients(
        self,
        v: Tensor | None,
        s_grad: Tensor,
        detach: bool,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of u, weight and prior, from [iterations, B, O, E] of V and s_grad."""
        b, i, o, e, d = self.sizes
        u_grad = self.u.new_empty((b, i, d)) if needs[0] else None
        prior_grad = torch.empty_like(self.prior) if needs[2] else None
        weight_grad = torch.empty_like(self.weight) if needs[1] else None
        each = weight_grad
        if weight_grad is not None and self.weight.dim() == 3:
            each = self.u.new_empty((i, o, e, d)).permute(1, 0, 2, 3)
        iterations = s_grad.size(0)
        launch(
            routing_gradient_kernel,
            i,
            *(self.u, self.weight, self.given(v), self.given(self.prior), self.given(self.mask)),
            *(s_grad, self.given(u_grad), self.given(each), self.given(prior_grad)),
            *self.sizes,
            iterations - 1 if detach and not needs[2] else 0,
            iterations,
            *self.strides,
            *((0, 0, 0, 0) if each is None else each.stride()),
            self.scale,
            HAS_V=v is not None,
            DETACH=detach,
            NEEDS_U=needs[0],
            NEEDS_WEIGHT=needs[1],
            PRIOR_GRAD="" if not needs[2] else "shared" if self.prior.dim() == 2 else "batched",
            num_warps=self.warps,
            **self.options,
        )
        if each is not weight_grad:
            contiguous = weight_grad.new_empty((o, e, d))
            ordered_sum(each.permute(1, 0, 2, 3), contiguous)
            weight_grad.copy_(contiguous)
        return u_grad, weight_grad, prior_grad


def unsupported(u: Tensor, weight: Tensor, *call: object) -> list[str]:
    """Reasons why these kernels cannot take the call; empty where they can."""
    reasons = cannot_run_on(u)
    if u.dtype not in DTYPES:
        reasons.append(f"dtype {u.dtype} is not one of {', '.join(map(str, DTYPES))}")
    width = triton.next_power_of_2(weight.size(0)) * triton.next_power_of_2(weight.size(-2))
    if width > WIDEST:
        reasons.append(f"out-capsules of {width} numbers, padded, are more than {WIDEST}")
    if any(isinstance(option, str) and option == "in" for option in call):
        reasons.append("a softmax over the in-capsules is not among its kernels")
    return reasons


def dynamic_routing_forward(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    iterations: int,
    coupling_dim: str,
    leaky: bool,
    accumulate: bool,
    scale: float,
    squash: str,
    eps: float,
    save: bool,
    return_couplings: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns v [B, O, E], and if asked for s of every iteration and the last couplings."""
    output, s, couplings = dynamic_routing_forward_fake(
        u, weight, bias, prior, mask, iterations, coupling_dim, leaky, accumulate, scale, squash,
        eps, save, return_couplings,
    )  # fmt: skip
    routing = Routing(u, weight, prior, mask, leaky, scale, coupling_dim)
    v = None
    for t in range(iterations):
        last = t == iterations - 1
        sums = routing.weighted_sums(v, couplings if last else None)
        v_next = output if last else torch.empty_like(output)
        previous = v if accumulate and not last else None
        routing.squash(sums, bias, previous, s[t] if save else None, v_next, squash, eps)
        v = v_next
    return output, s, couplings


def dynamic_routing_forward_fake(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    iterations: int,
    coupling_dim: str,
    leaky: bool,
    accumulate: bool,
    scale: float,
    squash: str,
    eps: float,
    save: bool,
    return_couplings: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    shape = (u.size(0), weight.size(0), weight.size(-2))
    return (
        u.new_empty(shape),
        u.new_empty((iterations, *shape)) if save else None,
        u.new_empty((*u.shape[:2], shape[1])) if return_couplings else None,
    )


def dynamic_routing_backward(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    s: Tensor,
    coupling_dim: str,
    detach_votes: bool,
    leaky: bool,
    accumulate: bool,
    scale: float,
    squash: str,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of u, weight, bias and prior; None for what is not needed."""
    needs_u, needs_weight, needs_bias, needs_prior = needs
    routing = Routing(u, weight, prior, mask, leaky, scale, coupling_dim)
    iterations = s.size(0)
    v = torch.zeros_like(s)
    for t in range(iterations - 1):
        previous = v[t] if accumulate and t > 0 else None
        routing.squash(s[t : t + 1], None, previous, None, v[t + 1], squash, eps)

    # Earlier iterations receive nothing through votes that are constants to them.
    first = iterations - 1 if detach_votes and not (needs_bias or needs_prior) else 0
    s_grad = torch.empty_like(s)
    r = torch.empty_like(s[0]) if accumulate else None
    sums, factor = grad.contiguous().unsqueeze(0), 1.0
    for t in reversed(range(first, iterations)):
        # The gradient of the output itself is no part of R.
        kept = r if t < iterations - 1 else None
        grown = accumulate and t < iterations - 2
        routing.squash_backward(sums, factor, s[t], kept, grown, s_grad[t], squash, eps)
        if t > first:
            sums, factor = routing.feedback(v[t], s_grad[t]), scale
    bias_grad = None
    if needs_bias:
        bias_grad = torch.empty_like(bias)
        ordered_sum(s_grad.flatten(0, 1), bias_grad)
    u_grad, weight_grad, prior_grad = None, None, None
    if needs_u or needs_weight or needs_prior:
        u_grad, weight_grad, prior_grad = routing.gradients(
            v, s_grad, detach_votes, (needs_u, needs_weight, needs_prior)
        )
    return u_grad, weight_grad, bias_grad, prior_grad


def dynamic_routing_backward_fake(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    s: Tensor,
    coupling_dim: str,
    detach_votes: bool,
    leaky: bool,
    accumulate: bool,
    scale: float,
    squash: str,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    return (
        u.new_empty(u.shape) if needs[0] else None,
        torch.empty_like(weight) if needs[1] else None,
        torch.empty_like(bias) if needs[2] else None,
        torch.empty_like(prior) if needs[3] else None,
    )


register(
    "dynamic_routing_forward(Tensor u, Tensor weight, Tensor? bias, Tensor? prior, Tensor? mask, "
    "int iterations, str coupling_dim, bool leaky, bool accumulate, float scale, str squash, "
    "float eps, bool save, bool return_couplings) -> (Tensor v, Tensor s, Tensor couplings)",
    dynamic_routing_forward,
    dynamic_routing_forward_fake,
)
register(
    "dynamic_routing_backward(Tensor grad, Tensor u, Tensor weight, Tensor? bias, Tensor? prior, "
    "Tensor? mask, Tensor s, str coupling_dim, bool detach_votes, bool leaky, bool accumulate, "
    "float scale, str squash, float eps, bool[4] needs) "
    "-> (Tensor grad_u, Tensor grad_weight, Tensor grad_bias, Tensor grad_prior)",
    dynamic_routing_backward,
    dynamic_routing_backward_fake,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Named calls whose launches the offline compilation builds."""
    sizes = [(128, 1152, 10, 8, 16, torch.float32)]
    if every:
        sizes += [(32, 2048, 32, 16, 16, torch.float32), (128, 1152, 10, 8, 16, torch.float64)]
    for b, i, o, d, e, dtype in sizes:
        new = partial(torch.empty, dtype=dtype, device="meta")
        u, weight, v, s = new(b, i, d), new(o, i, e, d), new(b, o, e), new(3, b, o, e)
        name = f"{str(dtype).removeprefix('torch.')} O={o}"
        options = ("out", False, True, 1.0, "exact", 0.0)
        yield (
            name,
            partial(dynamic_routing_forward, u, weight, None, None, None, 3, *options, True, False),
        )
        yield (
            name,
            partial(
                dynamic_routing_backward, v, u, weight, None, None, None, s, "out", False,
                *options[1:], (True, True, False, False),
            ),
        )  # fmt: skip

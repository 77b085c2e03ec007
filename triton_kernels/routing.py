"""The host side of routing: tiles, launches and scratch memory of one call's passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from .contracts import check_routing
from .epilogue import compute_type
from .gemm_config import precision_of
from .launch import launch, refusals, target_of
from .routing_gradient import routing_gradient_kernel
from .routing_squash import routing_squash_backward_kernel, routing_squash_kernel
from .routing_sums import (
    combine_statistics_kernel,
    routing_statistics_kernel,
    routing_sum_kernel,
)
from .sums import ordered_sum

DTYPES = (torch.float64, torch.float32)
# A tile [samples, out-capsules, out-dimension] lies in registers, a few times over.
TILE_BYTES = 32 << 10
# The weights of a tile pass through shared memory.
WEIGHT_BYTES = 32 << 10
SAMPLES, MOST_SAMPLES = 16, 64


@dataclass(frozen=True)
class Tiling:
    """A program's share; a softmax that lies in one tile needs no pass for its statistics."""

    samples: int
    capsules: int
    tiles: int
    whole: bool


def tiling_of(batch: int, o: int, e: int, d: int, itemsize: int, over_in: bool) -> Tiling:
    """The tile for out-capsules o of dimension e; e and d are padded, to powers of two."""

    def fits(samples: int, capsules: int) -> bool:
        tile = samples * capsules * e * itemsize <= TILE_BYTES
        return tile and capsules * e * d * itemsize <= WEIGHT_BYTES

    capsules = triton.next_power_of_2(o)
    if not over_in and fits(SAMPLES, capsules):
        return Tiling(SAMPLES, capsules, 1, True)
    # Many samples share the weights that were loaded; the weights are most of what is read.
    samples = min(MOST_SAMPLES, max(SAMPLES, triton.next_power_of_2(batch)))
    while capsules > 1 and not fits(samples, capsules):
        capsules //= 2
    while samples > SAMPLES and not fits(samples, capsules):
        samples //= 2
    return Tiling(samples, capsules, triton.cdiv(o, capsules), False)


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
        check_routing(u, weight, prior, mask)
        if reasons := unsupported(u, weight):
            raise ValueError("; ".join(reasons))
        self.u, self.weight = u, weight
        self.prior = None if prior is None else prior.contiguous()
        self.mask = None if mask is None else mask.contiguous()
        b, i, d = u.shape
        o, e = weight.size(0), weight.size(-2)
        self.sizes = (b, i, o, e, d)
        # A weight that in-capsules share, a prior or a mask that samples share: stride 0.
        shared = weight if weight.dim() == 4 else weight.unsqueeze(1).expand(o, i, e, d)
        self.links = (
            *u.stride(),
            *shared.stride(),
            i * o if prior is not None and prior.dim() == 3 else 0,
            i if mask is not None and mask.dim() == 2 else 0,
            scale,
        )
        # tl.dot sums over 16 elements or more: those of an in-capsule, or of a tile's out-capsules.
        block_e, block_d = triton.next_power_of_2(e), max(16, triton.next_power_of_2(d))
        self.over_in, self.leaky = coupling_dim == "in", leaky
        self.tiling = tiling_of(b, o, block_e, block_d, u.itemsize, self.over_in)
        samples, capsules = self.tiling.samples, self.tiling.capsules
        block_e = max(block_e, 16 // capsules)
        self.tiles = triton.cdiv(b, samples) * self.tiling.tiles
        # Enough programs for every processor, each with some in-capsules to walk over.
        parts = min(i, max(1, 4 * target_of(u).processors // max(1, self.tiles)), 256)
        self.part = triton.cdiv(i, max(1, parts))
        self.parts = triton.cdiv(i, max(1, self.part))
        self.options: dict[str, Any] = {
            "HAS_PRIOR": prior is not None,
            "HAS_MASK": mask is not None,
            "SOFTMAX": "tile" if self.tiling.whole else coupling_dim,
            "COMPUTE": compute_type(u.dtype),
            "PRECISION": precision_of(u.dtype, target_of(u)),
            "BLOCK_B": samples,
            "BLOCK_O": capsules,
            "BLOCK_E": block_e,
            "BLOCK_D": block_d,
            # About 16 numbers of a tile a thread: with 32, what is made of votes spills.
            "num_warps": min(16, max(4, samples * capsules * block_e * u.itemsize // 2048)),
            "num_stages": 2,
        }
        self.rows = {
            "ROWS": max(1, 512 // block_e),
            "BLOCK_E": block_e,
            "COMPUTE": compute_type(u.dtype),
        }

    def given(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Arguments that are there, or one that the kernel will not look at."""
        return tuple(self.u if tensor is None else tensor for tensor in tensors)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.given(self.u, self.weight, self.prior, self.mask)

    def statistics(self, v: Tensor | None, s_grad: Tensor | None, out: Tensor) -> None:
        """Writes [3, B, I] or [3, B, O]: of each softmax the highest logit, the sum of
        exp(logit - highest), and the mean of the gradient of its coupling coefficients."""
        partial = out.new_empty((self.parts if self.over_in else self.tiling.tiles, *out.shape))
        launch(
            routing_statistics_kernel,
            self.parts * self.tiles,
            *(partial, *self.inputs, *self.given(v, s_grad), *self.sizes, self.part, *self.links),
            HAS_V=v is not None,
            HAS_S_GRAD=s_grad is not None,
            **self.options,
        )
        size, block = out[0].numel(), 256
        launch(
            combine_statistics_kernel,
            triton.cdiv(size, block),
            *(partial, out, partial.size(0), size),
            LEAKY=self.leaky,
            BLOCK=block,
        )

    def new_statistics(self, iterations: int) -> Tensor | None:
        """Room for the statistics of some iterations; None where a tile holds its softmax."""
        if self.tiling.whole:
            return None
        b, i, o, _, _ = self.sizes
        return self.u.new_empty((iterations, 3, b, o if self.over_in else i))

    def weighted_sums(
        self,
        v: Tensor | None,
        *,
        s_grad: Tensor | None = None,
        couplings: Tensor | None = None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """[parts, B, O, E]: sums of c_ij votes_ij, or given s_grad of beta_ij votes_ij.

        Writes the coupling coefficients if asked to. Statistics that are given are taken as found.
        """
        b, _, o, e, _ = self.sizes
        if statistics is None and not self.tiling.whole:
            statistics = self.new_statistics(1)[0]
            self.statistics(v, s_grad, statistics)
        sums = self.u.new_empty((self.parts, b, o, e))
        launch(
            routing_sum_kernel,
            self.parts * self.tiles,
            *(sums, *self.given(couplings), *self.inputs, *self.given(v, s_grad, statistics)),
            *self.sizes,
            self.part,
            *self.links,
            HAS_V=v is not None,
            HAS_S_GRAD=s_grad is not None,
            HAS_COUPLINGS=couplings is not None,
            LEAKY=self.leaky,
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
            *(sums, *self.given(bias, v, s), v_next, sums.size(0), b * o, o, e, eps),
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
            *(sums, s, *self.given(r), s_grad, sums.size(0), b * o, e, scale, eps),
            HAS_R=grown,
            KEEP_R=r is not None,
            KIND=kind,
            **self.rows,
        )

    def gradients(
        self,
        v: Tensor | None,
        s_grad: Tensor,
        statistics: Tensor | None,
        detach: bool,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of u, weight and prior, from V, s_grad [iterations, B, O, E] and statistics."""
        b, i, o, e, d = self.sizes
        tiles = self.tiling.tiles
        u_grad = self.u.new_empty((b, i, d)) if needs[0] else None
        parts = u_grad if tiles == 1 or u_grad is None else self.u.new_empty((tiles, b, i, d))
        prior_grad = torch.empty_like(self.prior) if needs[2] else None
        weight_grad = torch.empty_like(self.weight) if needs[1] else None
        each = weight_grad
        if weight_grad is not None and self.weight.dim() == 3:
            each = self.u.new_empty((i, o, e, d)).permute(1, 0, 2, 3)
        if detach and not needs[2]:
            # Earlier iterations receive nothing through votes that are constants to them.
            v, s_grad = None if v is None else v[-1:], s_grad[-1:]
            statistics = None if statistics is None else statistics[-1:]
        launch(
            routing_gradient_kernel,
            i * tiles,
            *(*self.given(parts, each, prior_grad), *self.inputs),
            *(*self.given(v, s_grad, statistics), *self.sizes, s_grad.size(0), *self.links),
            *((0, 0, 0, 0) if each is None else each.stride()),
            0 if statistics is None else statistics.stride(0),
            HAS_V=v is not None,
            DETACH=detach,
            NEEDS_U=needs[0],
            NEEDS_WEIGHT=needs[1],
            PRIOR_GRAD="" if not needs[2] else "shared" if self.prior.dim() == 2 else "batched",
            LEAKY=self.leaky,
            **self.options,
        )
        if parts is not u_grad:
            ordered_sum(parts, u_grad)
        if each is not weight_grad:
            contiguous = weight_grad.new_empty((o, e, d))
            ordered_sum(each.permute(1, 0, 2, 3), contiguous)
            weight_grad.copy_(contiguous)
        return u_grad, weight_grad, prior_grad


def unsupported(u: Tensor, weight: Tensor, *_: object) -> list[str]:
    """Reasons why these kernels cannot take the call; empty where they can."""
    reasons = refusals(u, DTYPES)
    e, d = (max(16, triton.next_power_of_2(size)) for size in weight.shape[-2:])
    if e * d * u.itemsize > 2 * WEIGHT_BYTES or SAMPLES * e * u.itemsize > 2 * TILE_BYTES:
        reasons.append(
            f"dimensions {weight.size(-2)} and {weight.size(-1)} of an out- and an in-capsule are "
            "more than a tile holds"
        )
    return reasons

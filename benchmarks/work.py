"""What a pass has to do at least: the operations of its algorithm, and the bytes that it moves."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from passes import Pass

TILES = {"im2col": 0, "winograd": 2, "winograd4": 4}
# Where csrc/dynamic_routing/capsule_lanes.h forms the votes once a call: of a few samples, and of
# teams of samples.
FEW_SAMPLES, FEW_VOTES_BYTES = 4, 16 << 20
FEW_OF_TEAM_BYTES, PACKED_WEIGHT_BYTES = 3 << 20, 12 << 20
VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}


class Work(NamedTuple):
    """flops: multiplications and additions of products by the algorithm that `counted` names.

    bytes: of the tensors that have to be read or written.
    """

    flops: int
    counted: str
    bytes: int


def work_of(one: Pass) -> Work:
    """The work of a pass, which is run for it."""
    with FlopCounterMode(display=False) as counter:
        results = one.run()
    flops, counted = counter.get_total_flops(), "products"
    if not flops:
        counted = ""
    elif one.op == "conv2d":
        flops, counted = _of_conv2d(one, results, flops)
    elif one.op == "dynamic_routing":
        flops, counted = _of_routing(one, results, flops)
    return Work(flops, counted, _bytes(one, results))


def _bytes(one: Pass, results: list[Tensor]) -> int:
    unread = set()
    if one.op in ("linear", "conv2d") and (needs := one.needs):
        # A product's gradient by one factor does not read that factor.
        unread = {i for i, read in ((1, needs[1]), (2, needs[0])) if not read}
    moved = [a for i, a in enumerate(one.args) if isinstance(a, Tensor) and i not in unread]
    described = zip(one.args, one.function._schema.arguments)
    moved += [a for a, known in described if known.alias_info and known.alias_info.is_write]
    return sum(t.numel() * t.element_size() for t in (*moved, *results))


def _of_conv2d(one: Pass, results: list[Tensor], flops: int) -> tuple[int, str]:
    """The algorithm is the one that gives the same bits; Winograd's transforms do not count."""
    place = [argument.name for argument in one.function._schema.arguments].index("algorithm")
    for algorithm in TILES:
        args = (*one.args[:place], algorithm, *one.args[place + 1 :])
        if all(map(torch.equal, results, Pass(one.op, one.name, one.function, args).run())):
            break
    if not (m := TILES[algorithm]):
        return flops, algorithm

    def products(image: Tensor, weight: Tensor, m: int) -> int:
        tiles = image.shape[0] * math.prod(-(-side // m) for side in image.shape[2:])
        return 2 * tiles * (m + 2) ** 2 * (weight.numel() // 9)

    if not one.needs:
        return products(results[0], one.args[1], m), algorithm
    grad, input, weight = one.args[:3]
    # The gradient of the filters is F(3x3, 2x2) whatever the tiles of the others.
    parts = products(input, weight, m), products(grad, weight, 2)
    return sum(part for part, need in zip(parts, one.needs) if need), algorithm


def _of_routing(one: Pass, results: list[Tensor], flops: int) -> tuple[int, str]:
    """What docs/performance/capsule.md counts where every pass forms the votes anew."""
    forward = not one.needs
    u, weight = one.args[:2] if forward else one.args[1:3]
    samples, ins, d = u.shape
    votes = samples * ins * weight.shape[0] * weight.shape[-2]
    if samples <= FEW_SAMPLES and votes * u.element_size() <= FEW_VOTES_BYTES:
        return flops, "votes once"
    again = (results[1] if forward else one.args[6]).shape[0] - 1
    if _by_teams(u, weight, again + 1 if forward else again):
        per_vote = d + 1 + 2 * again if forward else d + 3 * again + 5 + d * sum(one.needs[:2])
        return 2 * votes * per_vote, "votes once"
    if forward:
        return 2 * votes * (d + again * (d + 2)), "votes anew"
    return 2 * votes * (again * (d + 3) + 5 + d * sum(one.needs[:2])), "votes anew"


def _by_teams(u: Tensor, weight: Tensor, passes: int) -> bool:
    """CapsuleLanes::suit_teams, for a weight in its own order."""
    from lamina import _C  # not above: without it limits.py says what is missing

    size, (_, ins, d) = u.element_size(), u.shape
    lanes = VECTOR_BYTES[_C.isa()] // size
    padded = -(-ins // lanes) * lanes
    sample = padded * weight.shape[0] * weight.shape[-2] * size
    return (
        passes > 1
        and padded <= ins + ins // 4
        and FEW_SAMPLES * sample <= FEW_OF_TEAM_BYTES
        and sample * d <= PACKED_WEIGHT_BYTES
    )

"""How products are tiled on which device: tables of candidates, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from .launch import Target


@dataclass(frozen=True)
class GemmConfig:
    """How one GEMM is tiled; `resident` programs share a processor."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    resident: int = 1
    group_m: int = 8
    subtiles: int = 1
    flatten: bool = False

    def __str__(self) -> str:
        sizes = f"{self.block_m}x{self.block_n}x{self.block_k}"
        return f"{sizes} w{self.warps} s{self.stages}" + ("/2" if self.subtiles == 2 else "")


# The configurations worth timing on a GPU, best guess first and smaller tiles last. They come from
# published Hopper and Ampere tilings and from what compiles without spills, not from measurements.
HOPPER = {
    16: (
        GemmConfig(128, 256, 64, 8, 3, subtiles=2, flatten=True),
        GemmConfig(128, 256, 64, 8, 3, subtiles=2),
        # Four stages fill the shared memory, where no pre-activation is stored as well.
        GemmConfig(128, 256, 64, 8, 4, subtiles=2, flatten=True),
        GemmConfig(128, 256, 64, 8, 4, subtiles=2),
        GemmConfig(256, 128, 64, 8, 3, subtiles=2, flatten=True),
        GemmConfig(128, 128, 64, 4, 3, resident=2),
        GemmConfig(128, 128, 128, 8, 3, subtiles=2),
        GemmConfig(64, 256, 64, 4, 4),
        GemmConfig(64, 128, 64, 4, 4, resident=2),
        GemmConfig(64, 64, 128, 4, 4, resident=2),
    ),
    "tf32": (
        GemmConfig(128, 128, 32, 8, 4),
        GemmConfig(128, 256, 32, 8, 3, subtiles=2),
        GemmConfig(64, 128, 32, 4, 4, resident=2),
        GemmConfig(64, 64, 32, 4, 4, resident=2),
    ),
    32: (
        GemmConfig(128, 128, 16, 8, 3),
        GemmConfig(128, 64, 16, 8, 3, resident=2),
        GemmConfig(64, 64, 16, 4, 3, resident=4),
    ),
    64: (
        GemmConfig(64, 64, 16, 4, 3, resident=2),
        GemmConfig(64, 64, 16, 8, 2, resident=2),
        GemmConfig(32, 32, 16, 4, 3, resident=4),
    ),
}
AMPERE = {
    16: (
        GemmConfig(128, 128, 32, 8, 4),
        GemmConfig(128, 128, 64, 8, 3),
        GemmConfig(64, 128, 32, 4, 4, resident=2),
        GemmConfig(64, 64, 32, 4, 4, resident=3),
    ),
    "tf32": (
        GemmConfig(128, 128, 32, 8, 3),
        GemmConfig(64, 64, 32, 4, 3, resident=3),
    ),
    # 128 x 64 spills here under Triton 3.6.
    32: (GemmConfig(128, 128, 16, 8, 3), GemmConfig(64, 64, 16, 4, 3, resident=4)),
    64: HOPPER[64],
}
CDNA = {
    16: (GemmConfig(128, 128, 64, 8, 2), GemmConfig(64, 64, 64, 4, 2, resident=2)),
    "tf32": (GemmConfig(128, 128, 32, 8, 2), GemmConfig(64, 64, 32, 4, 2, resident=2)),
    32: (GemmConfig(128, 128, 32, 8, 2), GemmConfig(64, 64, 32, 4, 2, resident=2)),
    64: (GemmConfig(64, 64, 16, 4, 2, resident=2), GemmConfig(32, 32, 16, 4, 2, resident=4)),
}
# The share of the processors that a product must keep busy: 128 tiles for 132 are enough.
FULL = 0.9
# Tiles this small meet every edge on the shapes of tests.
INTERPRETED = (GemmConfig(16, 32, 16, 1, 1, group_m=2, subtiles=2),)


def candidates(target: Target, dtype: torch.dtype, precision: str) -> tuple[GemmConfig, ...]:
    """The configurations worth trying on `target`, best guess for large products first."""
    if target.interpreted:
        return INTERPRETED
    table = CDNA if target.backend == "hip" else HOPPER if target.roomy else AMPERE
    width = 8 * dtype.itemsize
    return table["tf32" if width == 32 and precision == "tf32" else width]


def smaller(options: tuple[GemmConfig, ...]) -> tuple[GemmConfig, ...]:
    """Those for operands read through pointers, which take the registers that large tiles need."""
    return tuple(o for o in options if o.block_m * o.block_n <= 128 * 128)


def most_splits(config: GemmConfig, depth: int) -> int:
    """How many parts K can be cut into: one of fewer than 4 steps costs more than it gains."""
    return max(1, min(depth // (4 * config.block_k), 32))


def filling(
    options: tuple[GemmConfig, ...], target: Target, m: int, n: int, split_depth: int = 0
) -> GemmConfig:
    """The first configuration that fits a product and fills the device, else the last.

    Large tiles read least: where K may be cut (`split_depth` is K), its parts fill the device.
    """
    fitting = [o for o in options if o.block_m <= max(64, m) and o.block_n <= max(64, n)]
    for option in fitting:
        tiles = triton.cdiv(m, option.block_m) * triton.cdiv(n, option.block_n)
        if tiles * most_splits(option, split_depth) >= FULL * target.processors:
            return option
    return (fitting or options)[-1]


def choose(
    target: Target,
    dtype: torch.dtype,
    precision: str,
    m: int,
    n: int,
    *,
    described: bool,
    split_depth: int = 0,
) -> GemmConfig:
    """The configuration for one product; `described`: both operands have descriptors."""
    options = candidates(target, dtype, precision)
    options = options if described else smaller(options)
    return filling(options, target, m, n, split_depth)


def splits_of(target: Target, config: GemmConfig, m: int, n: int, k: int) -> int:
    """How many parts K is cut into, so that few tiles still fill the device."""
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    room = target.processors * config.resident // max(tiles, 1)
    return max(1, min(room, most_splits(config, k)))


def precision_of(dtype: torch.dtype, target: Target) -> str:
    """How products of this dtype are computed: for float32, what torch and the target allow."""
    allowed = target.tf32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"

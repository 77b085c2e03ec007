"""How convolutions are tiled on which device: gathered, hence without the largest tiles."""

from __future__ import annotations

import torch

from . import gemm_config
from .gemm_config import GemmConfig, filling, smaller
from .launch import Target

HOPPER_16 = (
    GemmConfig(128, 128, 64, 8, 3),
    GemmConfig(128, 128, 32, 8, 4),
    GemmConfig(128, 64, 64, 4, 4),
    GemmConfig(64, 128, 64, 4, 3),
    GemmConfig(64, 64, 64, 4, 4),
)
INTERPRETED = (GemmConfig(64, 32, 32, 1, 1, group_m=2),)


def candidates(target: Target, dtype: torch.dtype, precision: str) -> tuple[GemmConfig, ...]:
    """The configurations worth trying on `target`, best guess for large products first."""
    if target.interpreted:
        return INTERPRETED
    if target.roomy and dtype.itemsize == 2:
        return HOPPER_16
    return smaller(gemm_config.candidates(target, dtype, precision))


def choose(target: Target, dtype: torch.dtype, precision: str, m: int, n: int) -> GemmConfig:
    """The configuration for one product."""
    return filling(candidates(target, dtype, precision), target, m, n)

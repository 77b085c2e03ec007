"""What is to be timed: the cases of a benchmark, and the wishes that nothing can fulfil."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch

from lamina import backends
from lamina.bench.peers import peers_of
from lamina.spec import Spec, Workload


@dataclass(frozen=True)
class Case:
    """One table cell's worth of work: an op on one shape, in one dtype and mode."""

    spec: Spec
    dtype: torch.dtype
    workload: Workload
    mode: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.spec.name} {self.workload.name} {dtype} {self.mode}"


def cases_of(
    chosen: Sequence[Spec],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    modes: Sequence[str],
    shapes: Sequence[str],
) -> list[Case]:
    """Every shape that a pattern matches, in every dtype that its op has kernels for."""
    return [
        Case(spec, dtype, workload, mode)
        for spec in chosen
        for dtype in dict.fromkeys(dtypes)
        if dtype in spec.dtypes
        for workload in dict.fromkeys(
            w for pattern in shapes for w in spec.workloads_like(pattern, device)
        )
        for mode in dict.fromkeys(modes)
    ]


def _short(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def without_kernels(chosen: Sequence[Spec], dtypes: Sequence[torch.dtype]) -> list[str]:
    """The ops that are not timed in some dtype: there is nothing of Lamina's to time."""
    return [
        f"{spec.name} has no kernels in {_short(absent)}: ask for {_short(spec.dtypes)}"
        for spec in chosen
        if (absent := [dtype for dtype in dict.fromkeys(dtypes) if dtype not in spec.dtypes])
    ]


def check_wishes(
    chosen: Sequence[Spec],
    device: torch.device,
    shapes: Sequence[str],
    peers: Sequence[str] | None,
    kernels: Sequence[str] | None,
) -> None:
    """ValueError for a backend that can't run here, and a pattern that nothing matches."""
    for name in kernels or ():
        backend = backends.BACKENDS[name]
        if backend.missing or backend.device != device.type:
            why = backend.missing or f"its kernels take {backend.device}, the device is {device}"
            raise ValueError(f"backend {name} was asked for and cannot run: {why}")
    for pattern in shapes:
        if not any(spec.workloads_like(pattern, device) for spec in chosen):
            known = {spec.name: [w.name for w in spec.workloads_on(device)] for spec in chosen}
            raise ValueError(f"no shape matches {pattern}; there are {known}")
    for pattern in peers or ():
        known = {spec.name: [peer.name for peer in peers_of(spec)] for spec in chosen}
        if not any(fnmatch(name, pattern) for names in known.values() for name in names):
            raise ValueError(f"no peer matches {pattern}; there are {known}")

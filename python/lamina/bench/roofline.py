"""The limits of the machine, measured, and the time that a workload needs at least."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import torch

from lamina.modules import _C

REPEATS = 5  # A probe's best run counts: whatever disturbs it makes it slower.
CPU_COPY = 256 << 20
GPU_COPY = 1 << 30
GPU_MATRIX = {torch.float64: 4096, torch.float32: 8192}


@dataclass(frozen=True)
class Peaks:
    """flops: operations a second by dtype. bandwidth: bytes read plus written a second."""

    flops: dict[torch.dtype, float]
    bandwidth: float

    def least_seconds(self, dtype: torch.dtype, flops: float, elements: float) -> float:
        """The time below which no kernel that does this work on memory-sized data can come."""
        return max(flops / self.flops[dtype], elements * dtype.itemsize / self.bandwidth)

    def described(self) -> tuple[str, str]:
        """(arithmetic, copy) for people."""
        rates = [f"{str(d).removeprefix('torch.')} {f / 1e9:,.0f}" for d, f in self.flops.items()]
        return f"{', '.join(rates)} GFLOP/s", f"{self.bandwidth / 1e9:,.1f} GB/s"


@cache
def measure(device: torch.device, threads: int) -> Peaks | None:
    """The peaks of a device; None on a CPU without the C++ module.

    On the CPU the arithmetic peak is that of multiply-adds in registers, which 16-bit types are
    expanded for. On a GPU it is that of the vendor's largest matrix product.
    """
    if device.type == "cuda":
        return _measure_gpu(device)
    if _C is None:
        return None
    single, twice = (
        max(_C.peak_flops(f64=f64, threads=threads) for _ in range(REPEATS))
        for f64 in (False, True)
    )
    copies = (_C.copy_bandwidth(bytes=CPU_COPY, threads=threads) for _ in range(REPEATS))
    flops = {
        torch.float64: twice,
        torch.float32: single,
        torch.bfloat16: single,
        torch.float16: single,
    }
    return Peaks(flops, max(copies))


def core_to_core() -> str | None:
    """How far apart two cores are now, for people; None with one core or no C++ module.

    On a virtual machine this changes while programs run.
    """
    if _C is None or (os.cpu_count() or 1) < 2:
        return None
    return f"{min(_C.round_trip() for _ in range(REPEATS)) * 1e9:.0f} ns"


def _measure_gpu(device: torch.device) -> Peaks:
    flops = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        n = GPU_MATRIX.get(dtype, 8192)
        a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
        flops[dtype] = 2 * n**3 / _fastest(lambda a=a, b=b: a @ b)
    source = torch.empty(GPU_COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(flops, 2 * GPU_COPY / _fastest(lambda: target.copy_(source)))


def _fastest(call: object) -> float:
    times = []
    call()
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return min(times)

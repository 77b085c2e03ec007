"""`lamina info`: what was built, what runs here, why the rest does not and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lamina.backends import BACKENDS, NAMES, _lookup
from lamina.console import Cell, print_table
from lamina.modules import _C, missing
from lamina.spec import specs

PARTS = {
    "triton": ("Triton kernels", "pip install triton"),
    "rich": ("colours and progress bars", "pip install 'lamina[cli]'"),
    "matplotlib": ("plots", "pip install 'lamina[cli]'"),
    "sklearn": ("the digits of `lamina demo`", "pip install 'lamina[demo]'"),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def versions() -> dict[str, str | None]:
    """Version of Lamina and of everything it meets; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("lamina", "torch", *PARTS):
        try:
            found[name] = version(DISTRIBUTIONS.get(name, name))
        except PackageNotFoundError:
            found[name] = None
    found["cuda"] = torch.version.cuda
    return found


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """The cores that this process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """What benchmark rows call the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def _machine() -> list[tuple[str, str]]:
    rows = [(name, found or "not installed") for name, found in versions().items()]
    rows.append(("processor", f"{cpu_name()}, {cores()} cores"))
    rows.append(("threads", f"{torch.get_num_threads()} (torch.set_num_threads, OMP_NUM_THREADS)"))
    if _C is not None:
        rows.append(("instruction set", f"{_C.isa()} (LAMINA_ISA lowers it)"))
        rows.append(("compiled by", f"{_C.compiler}, against {_C.built_against}"))
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        rows.append((f"GPU {index}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}"))
    if not torch.cuda.device_count():
        rows.append(("GPU", "none"))
    return rows


def _wanting() -> list[tuple[str, str]]:
    rows = [(name, reason) for name, reason in missing.items() if reason]
    if not torch.cuda.is_available():
        rows += [
            (name, "no GPU is here: its kernels can't run")
            for name, backend in BACKENDS.items()
            if backend.device == "cuda" and not missing[name]
        ]
    rows += [
        (name, f"{purpose}: {how}")
        for name, (purpose, how) in PARTS.items()
        if importlib.util.find_spec(name) is None and name not in missing
    ]
    if missing["cuda"] and torch.version.cuda and shutil.which("nvcc") is None:
        rows.append(("nvcc", "to build the CUDA kernels: put the CUDA toolkit's bin on the path"))
    return rows


def _print_ops() -> None:
    rows = []
    for name in specs():
        row = [name, Cell("yes", "green")]
        for backend in NAMES[1:]:
            place = BACKENDS[backend]
            there = not place.missing and _lookup(place.namespace, name) is not None
            row.append(Cell("yes", "green") if there else Cell("-", "dim"))
        rows.append(row)
    print_table("Kernels that are loaded", ["op", *NAMES], rows)


def _print_peaks() -> None:
    from lamina.bench.roofline import core_to_core, measure

    rows = []
    for count in sorted({1, torch.get_num_threads()}):
        peaks = measure(torch.device("cpu"), count)
        if peaks is None:
            print("--probe needs the C++ module, which is missing")
            return
        rows.append((f"processor, threads: {count}", *peaks.described()))
    if torch.cuda.is_available():
        rows.append(("GPU", *measure(torch.device("cuda"), 1).described()))
    print_table("Measured peaks", ["device", "arithmetic", "copy (read + write)"], rows)
    if there_and_back := core_to_core():
        print(f"A cache line goes to another core and back in {there_and_back}.")


def info(probe: bool = False) -> None:
    """Print what there is, and with `probe` the peaks that this machine reaches."""
    print_table("Lamina", ["", ""], _machine())
    _print_ops()
    if probe:
        _print_peaks()
    wanting = _wanting()
    if wanting:
        print_table("Missing", ["what", "why, and how to get it"], wanting)

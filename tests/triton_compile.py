"""Compiles every Triton kernel for GPUs that need not be there, and prints what came out.

    python tests/triton_compile.py [op ...] [--target sm_90 ...] [--jobs N] [--every]

The kernels are compiled exactly as they are launched: each op's `offline_calls` runs on meta
tensors while launches are recorded. Exit code 1 if one does not compile or needs more shared memory
than there is, or if a GEMM spills registers. `--every` takes all candidates for tuning, not only
the defaults.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from lamina import triton_kernels

OPS = [
    name
    for _, name, _ in iter_modules(triton_kernels.__path__)
    if hasattr(import_module(f"lamina.triton_kernels.{name}"), "offline_calls")
]
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
PROCESSORS = {"sm_80": 108, "sm_90": 132, "gfx942": 304}
# ptxas puts one or two addresses on the stack of kernels that it gives 64 to 168 registers.
TOLERATED = 16
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}
# What shows that a matrix product runs on the matrix units, and that loads run ahead of it.
INSTRUCTIONS = ("wgmma", "mma", "cp.async", "tma", "mfma")
PATTERNS = {
    "wgmma": r"wgmma\.mma_async",
    "mma": r"\bmma\.sync",
    "cp.async": r"cp\.async\.(ca|cg)",
    "tma": r"cp\.async\.bulk\.tensor",
    "mfma": r"v_mfma_",
}


@dataclass(frozen=True)
class Built:
    kernel: str
    call: str
    target: str
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    instructions: frozenset[str] = frozenset()
    is_gemm: bool = False
    error: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.complaint)

    @property
    def complaint(self) -> str:
        if self.error:
            return self.error
        if self.is_gemm and self.spilled > TOLERATED:
            return f"{self.spilled} spilled"
        if self.shared > SHARED[self.target]:
            return f"{self.shared} bytes of shared memory, there are {SHARED[self.target]}"
        return ""


def specialised(path: tuple[int, ...], argument: Any, constants: dict, attributes: dict) -> Any:
    """The type of one runtime argument, as Triton's launcher would specialise it."""
    if isinstance(argument, tuple):
        return tuple(
            specialised((*path, i), part, constants, attributes) for i, part in enumerate(argument)
        )
    if isinstance(argument, int) and argument == 1:
        constants[path] = 1
        return "constexpr"
    aligned = isinstance(argument, torch.Tensor) and argument.data_ptr() % 16 == 0
    if aligned or (isinstance(argument, int) and argument % 16 == 0):
        attributes[path] = [["tt.divisibility", 16]]
    return mangle_type(argument)


def source_of(launch: Any) -> tuple[ASTSource, dict[str, Any]]:
    """A recorded launch as a compilation's source and options."""
    kernel = launch.kernel
    options = {k: v for k, v in launch.options.items() if k not in kernel.arg_names}
    constants = {
        (kernel.arg_names.index(name),): value
        for name, value in launch.options.items()
        if name not in options
    }
    attributes: dict = {}
    signature: dict[str, Any] = dict.fromkeys(kernel.arg_names, "constexpr")
    for i, argument in enumerate(launch.arguments):
        annotation = kernel.params[i].annotation_type
        signature[kernel.arg_names[i]] = annotation or specialised(
            (i,), argument, constants, attributes
        )
    return ASTSource(kernel, signature, constants, attributes), options


def resources(compiled: Any) -> tuple[int, int]:
    """Registers a thread, and bytes spilled (on AMD: registers spilled)."""
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        return tuple(int(re.search(rf"\.vgpr_{x}count:\s+(\d+)", text)[1]) for x in ("", "spill_"))
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    # What ptxas spills is on the stack.
    return int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"STACK:(\d+)", usage)[1])


def calls(op: str, target: str, every: bool) -> Iterator[tuple[str, str, Any]]:
    """(kernel, call, launch) of everything to be compiled for an op, each compilation once."""
    module = import_module(f"lamina.triton_kernels.{op}")
    gpu = TARGETS[target]
    configured = triton_kernels.launch.Target(
        gpu.backend, gpu.arch if gpu.backend == "cuda" else 942, PROCESSORS[target]
    )
    seen = set()
    with triton_kernels.launch.targeting(configured):
        for name, call in module.offline_calls(configured, every):
            with triton_kernels.launch.recording() as launches:
                call()
            for recorded in launches:
                source, options = source_of(recorded)
                key = source.hash(), str(options)
                if key not in seen:
                    seen.add(key)
                    yield recorded.kernel.__name__, name, recorded


def build(op: str, target: str, every: bool, index: int) -> Built:
    """Compiles the index-th launch of an op: launches are found anew, since they don't pickle."""
    kernel, call, launch = list(calls(op, target, every))[index]
    source, options = source_of(launch)
    is_gemm = "gemm" in kernel
    try:
        compiled = triton.compile(source, target=TARGETS[target], options=options)
        registers, spilled = resources(compiled)
    except Exception as error:
        return Built(kernel, call, target, error=str(error).strip() or repr(error))
    if getattr(compiled.metadata, "global_scratch_size", 0):
        return Built(kernel, call, target, error="needs scratch memory, which nobody allocates")
    text = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
    return Built(
        kernel,
        call,
        target,
        registers,
        spilled,
        compiled.metadata.shared,
        frozenset(name for name in INSTRUCTIONS if re.search(PATTERNS[name], text)),
        is_gemm,
    )


COLUMNS = ("op", "kernel", "call", "target", "registers", "spilled", "shared", *INSTRUCTIONS)


def row(op: str, b: Built) -> list[str]:
    if b.error:
        return [op, b.kernel, b.call, b.target, "failed", *[""] * (len(COLUMNS) - 5)]
    used = ["yes" if name in b.instructions else "" for name in INSTRUCTIONS]
    return [op, b.kernel, b.call, b.target, *map(str, (b.registers, b.spilled, b.shared)), *used]


def show(rows: list[list[str]], failed: list[bool]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
        for line in (COLUMNS, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
        return
    table = Table(*COLUMNS)
    for line, bad in zip(rows, failed, strict=True):
        table.add_row(*line, style="red" if bad else None)
    console = Console()
    Console(width=None if console.is_terminal else 180).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ops", nargs="*", default=OPS, metavar="op")
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--every", action="store_true")
    arguments = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("unset TRITON_INTERPRET: it turns the compiler off")

    start = time.perf_counter()
    work = [
        (op, target, arguments.every, index)
        for op in arguments.ops
        for target in arguments.target or TARGETS
        for index, _ in enumerate(calls(op, target, arguments.every))
    ]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        built = list(pool.map(build, *zip(*work, strict=True)))
    rows = [row(op, b) for (op, *_), b in zip(work, built, strict=True)]
    show(rows, [b.failed for b in built])
    for b in built:
        if b.complaint:
            print(f"{b.kernel} ({b.call}, {b.target}): {b.complaint}")
    failures = sum(b.failed for b in built)
    print(
        f"Triton {triton.__version__}: {len(built)} compilations, {failures} failed, "
        f"{time.perf_counter() - start:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compiles every CUDA kernel with nvcc and reports its registers, shared memory and spills.

    python tests/cuda_report.py [--arch sm_80 --arch sm_90a ...]

Exits with 1 if a GEMM kernel spills registers or a file does not compile. Needs nvcc, but no GPU
and no torch.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).resolve().parents[1] / "csrc"
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


class Kernel(NamedTuple):
    """What ptxas says of one kernel on one architecture; shared memory is the static part."""

    file: str
    name: str
    arch: str
    registers: int
    shared: int
    spilled: int

    @property
    def is_gemm(self) -> bool:
        return "gemm" in self.name


def find_nvcc() -> str:
    """The compiler on the path, or where the toolkit is usually installed."""
    found = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(found).exists():
        sys.exit("cuda_report: nvcc is not on the path")
    return found


def compile_file(nvcc: str, source: Path, arch: str) -> str:
    """The remarks of ptxas on one file."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [nvcc, "-std=c++17", "-O3", f"-I{CSRC}", "-Xptxas=-v,-warn-spills", "-cubin"]
        command += [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}", str(source)]
        done = subprocess.run(
            [*command, "-o", f"{scratch}/out.cubin"], capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def demangle(names: list[str]) -> list[str]:
    """Names as a person writes them, without namespaces and parameters."""
    if shutil.which("c++filt") is None:
        return names
    plain = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    drop = re.compile(r"lamina::|\(anonymous namespace\)::|_GLOBAL__N__\w+::|\(\w+\)|^void ")
    shortened = []
    for name in plain.splitlines():
        # The parameters start at the parenthesis after the last template argument.
        name = drop.sub("", name)
        depth = 0
        for i, letter in enumerate(name):
            depth += (letter == "<") - (letter == ">")
            if letter == "(" and depth == 0:
                name = name[:i]
                break
        shortened.append(name)
    return shortened


def read_remarks(file: str, remarks: str) -> list[Kernel]:
    """The kernels of one compilation."""
    kernels, mangled, arch, spilled = [], "", "", 0
    for line in remarks.splitlines():
        if match := ENTRY.search(line):
            mangled, arch = match.groups()
        elif match := SPILL.search(line):
            spilled = int(match[1]) + int(match[2])
        elif match := USED.search(line):
            shared = int(match[2] or 0)
            kernels.append(Kernel(file, mangled, arch, int(match[1]), shared, spilled))
    names = demangle([kernel.name for kernel in kernels])
    return [kernel._replace(name=name) for kernel, name in zip(kernels, names, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="sm_80, sm_90a, ... (default: both)")
    archs = parser.parse_args().arch or ["sm_80", "sm_90a"]
    nvcc, start = find_nvcc(), time.monotonic()
    jobs = [(source, arch) for source in sorted(CSRC.glob("**/*_cuda.cu")) for arch in archs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        remarks = pool.map(lambda job: compile_file(nvcc, *job), jobs)
        kernels = [
            kernel
            for (source, _), text in zip(jobs, remarks, strict=True)
            for kernel in read_remarks(str(source.relative_to(CSRC)), text)
        ]
    print(f"{'registers':>9} {'shared':>7} {'spilled':>7}  arch    kernel")
    for kernel in sorted(kernels):
        print(
            f"{kernel.registers:9} {kernel.shared:7} {kernel.spilled:7}  {kernel.arch:7} "
            f"{kernel.name}"
        )
    spilling = [kernel for kernel in kernels if kernel.is_gemm and kernel.spilled]
    for kernel in spilling:
        print(f"spills {kernel.spilled} bytes on {kernel.arch}: {kernel.name}", file=sys.stderr)
    print(f"{len(kernels)} kernels, {len(jobs)} compilations, {time.monotonic() - start:.0f} s")
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())

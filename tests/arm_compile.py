"""Compiles every CPU source for 64-bit ARM, where the baseline kernels are NEON's.

    python tests/arm_compile.py

Needs the cross compiler aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu) and torch's headers;
runs nothing. Exits with 1 if a file does not compile or warns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

CSRC = Path(__file__).resolve().parents[1] / "csrc"
COMPILER = "aarch64-linux-gnu-g++"
FLAGS = ["-std=gnu++17", "-O2", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
FLAGS += ["-fPIC", "-fvisibility=hidden"]
FLAGS += ["-DLAMINA_ISA=baseline", "-DLAMINA_ISA_baseline=1", f"-I{CSRC}"]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
FLAGS += ["-isystem", str(Path(torch.__file__).parent / "include")]


def compile_file(source: Path) -> str:
    """What the compiler says against it; nothing if it compiles."""
    with tempfile.TemporaryDirectory() as folder:
        command = [COMPILER, *FLAGS, "-c", str(source), "-o", f"{folder}/out.o"]
        return subprocess.run(command, capture_output=True, text=True).stderr


def main() -> int:
    """Compile all, print what fails."""
    if not shutil.which(COMPILER):
        sys.exit(f"arm_compile: {COMPILER} is not on the path; on Debian: g++-aarch64-linux-gnu")
    sources = [CSRC / "library.cpp", CSRC / "host/probes.cpp"]
    sources += sorted((*CSRC.glob("*/*_kernels.cpp"), *CSRC.glob("*/*_cpu.cpp")))
    begin, failed = time.monotonic(), 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for source, complaint in zip(sources, pool.map(compile_file, sources)):
            print(f"{source.relative_to(CSRC)}: {'failed' if complaint else 'ok'}", flush=True)
            failed += bool(complaint)
            print(complaint, end="")
    print(f"{len(sources)} files, {failed} failed, {time.monotonic() - begin:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

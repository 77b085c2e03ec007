"""Builds every .cu file of the project for the CPU, against the host shim, as one library.

    python tests/host_shim/build.py     builds what changed and prints the library's path

Loading the library with ``torch.ops.load_library`` registers the CUDA ops for CPU tensors in the
namespace ``lamina_host``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent
FLAGS = [
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-DLAMINA_HOST_SHIM",
    f"-I{HERE / 'include'}",
    f"-I{CSRC}",
]
# Every load and store of a kernel reports itself to host_grid.cpp, which stands in for the
# sanitizer's own runtime.
KERNEL_FLAGS = ["-O1", "-fsanitize=thread", "-x", "c++"]
GLUE_FLAGS = [
    "-O1",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    f"-I{TORCH / 'include'}",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
]


def _cache_directory() -> Path:
    base = os.environ.get("LAMINA_HOST_SHIM_CACHE")
    return Path(base) if base else ROOT / "build" / f"host_shim-torch{torch.__version__}"


def _newest(paths: list[Path]) -> float:
    return max((path.stat().st_mtime for path in paths), default=0.0)


def _dependencies(makefile: Path) -> list[Path]:
    if not makefile.exists():
        return []
    names = makefile.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    return [Path(name) for name in names]


def _is_fresh(target: Path, makefile: Path) -> bool:
    sources = _dependencies(makefile)
    if not target.exists() or not sources or not all(path.exists() for path in sources):
        return False
    return _newest([*sources, Path(__file__)]) < target.stat().st_mtime


def _compile(source: Path, directory: Path) -> Path:
    target = directory / (source.name + ".o")
    makefile = target.with_suffix(".d")
    if _is_fresh(target, makefile):
        return target
    flags = ["-O3"]
    if source.suffix == ".cu":
        flags = KERNEL_FLAGS
    elif source.is_relative_to(CSRC):
        flags = GLUE_FLAGS
    command = ["g++", *FLAGS, *flags, "-MMD", "-MF", str(makefile), "-c", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


def build(directory: Path | None = None) -> Path:
    """Compiles what changed, in parallel, and returns the path of the library.

    Args:
        directory: where objects and the library go; ``build/`` in the repository by default.

    Raises:
        RuntimeError: there is no g++.
        subprocess.CalledProcessError: a file does not compile.
    """
    if shutil.which("g++") is None:
        raise RuntimeError("the host shim needs g++")
    directory = directory or _cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    kernels = sorted(CSRC.glob("**/*_cuda.cu")) + sorted(CSRC.glob("**/*_cuda.cpp"))
    sources = [HERE / "host_grid.cpp", HERE / "planted.cu", *kernels]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, directory), sources))
    library = directory / "_cuda_host.so"
    if not library.exists() or _newest(objects) >= library.stat().st_mtime:
        # Linked under another name first: a library that is in use must not be overwritten.
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".so", delete=False) as scratch:
            link = ["g++", "-shared", "-o", scratch.name, *map(str, objects)]
            link += [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-Wl,--no-undefined"]
            subprocess.run(link, check=True)
        os.replace(scratch.name, library)
    return library


if __name__ == "__main__":
    try:
        print(build())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)

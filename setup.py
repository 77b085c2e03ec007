"""Lamina's build back end: scikit-build-core, told where the target environment's torch lies.

torch is not a build requirement on purpose: pip would fetch the newest one into an isolated
environment and compile against headers that the installed torch does not match. It is looked up as
files in the environment that Lamina is installed into.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from scikit_build_core import build as backend

build_sdist = backend.build_sdist
get_requires_for_build_sdist = backend.get_requires_for_build_sdist


def torch_directory() -> Path:
    """The folder of the installed torch package: LAMINA_TORCH, ours, or the venv's."""
    candidates = [Path(os.environ["LAMINA_TORCH"])] if "LAMINA_TORCH" in os.environ else []
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        candidates.append(Path(spec.origin).parent)
    candidates += [Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib")]
    if "VIRTUAL_ENV" in os.environ:
        candidates += Path(os.environ["VIRTUAL_ENV"]).glob("lib/python*/site-packages/torch")
    for candidate in candidates:
        if (candidate / "include/torch/csrc/stable/library.h").is_file():
            return candidate
    raise SystemExit(
        "Lamina is compiled against the torch of the environment it is installed into, and none "
        f"(2.10 or newer) was found in {', '.join(map(str, candidates))}.\n"
        "Install torch first (pip install torch), or set LAMINA_TORCH to its package folder."
    )


def cpp_compiler() -> str | None:
    """The C++ compiler that CMake would take, or None."""
    named = os.environ.get("CXX", "").split(" ")[0]
    return next(filter(None, map(shutil.which, [named, "c++", "g++", "clang++"])), None)


def settings(config_settings: dict | None) -> dict:
    """config_settings with torch's place added, or with CMake off where nothing can compile."""
    given = dict(config_settings or {})
    if cpp_compiler() is None:
        print(
            "lamina: no C++ compiler found (CXX, c++, g++, clang++): building the pure-Python "
            "wheel, which runs every layer on its PyTorch reference. Install a compiler and "
            "reinstall to get the kernels.",
            file=sys.stderr,
        )
        return {**given, "wheel.cmake": "false"}
    return {**given, "cmake.define.LAMINA_TORCH": str(torch_directory())}


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return [] if cpp_compiler() is None else backend.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    if cpp_compiler() is None:
        return []
    return backend.get_requires_for_build_editable(config_settings)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: dict | None = None
) -> str:
    return backend.prepare_metadata_for_build_wheel(metadata_directory, settings(config_settings))


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: dict | None = None
) -> str:
    return backend.prepare_metadata_for_build_editable(
        metadata_directory, settings(config_settings)
    )


def build_wheel(
    wheel_directory: str,
    config_settings: dict | None = None,
    metadata_directory: str | None = None,
) -> str:
    return backend.build_wheel(wheel_directory, settings(config_settings), metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: dict | None = None,
    metadata_directory: str | None = None,
) -> str:
    return backend.build_editable(wheel_directory, settings(config_settings), metadata_directory)

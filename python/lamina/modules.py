"""Loads what was compiled, and remembers why the rest is absent."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path

import torch

ISAS = ("baseline", "avx2", "avx512")
REINSTALL = "reinstall with a C++ compiler on the path: pip install --no-build-isolation ."


def library(name: str) -> str | None:
    """The compiled library's file: in an editable install it is not beside this file.

    LAMINA_MODULES names a folder that is looked into first, such as a build with sanitizers.
    """
    override = Path(os.environ.get("LAMINA_MODULES", ""), f"{name}.so")
    if "LAMINA_MODULES" in os.environ and override.is_file():
        return str(override)
    spec = importlib.util.find_spec(f"lamina.{name}")
    return spec.origin if spec else None


def _load(name: str, absent: str) -> str | None:
    """Load a library of ops; the reason why it is not there, or None."""
    file = library(name)
    if file is None:
        return absent
    try:
        torch.ops.load_library(file)
    except OSError as error:
        return f"{file} does not load into torch {torch.__version__}: {error}"
    return None


def _load_cuda() -> str | None:
    if missing["cpp"]:
        return f"needs the C++ module, which is missing: {missing['cpp']}"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return _load("_cuda", "the CUDA module was not built: reinstall with nvcc on the path")


def _load_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    try:
        importlib.import_module("lamina.triton_kernels")
    except ImportError as error:
        return f"lamina.triton_kernels does not import: {error}"
    return None


def _check_isa(asked: str | None, runs: str) -> None:
    """ValueError unless the instruction set that LAMINA_ISA asks for is the one that runs."""
    if asked and asked != runs:
        accepted = ISAS[: ISAS.index(runs) + 1]
        raise ValueError(f"LAMINA_ISA is {asked!r}; this CPU runs {', '.join(accepted)}")


missing: dict[str, str | None] = {"reference": None}
"""For each backend the reason why its module is not there, or None."""

missing["cpp"] = _load("_ops", f"the C++ module was not built: {REINSTALL}")
missing["cuda"] = _load_cuda()
missing["triton"] = _load_triton()

_C = importlib.import_module("lamina._C") if importlib.util.find_spec("lamina._C") else None
if _C is not None:
    _check_isa(os.environ.get("LAMINA_ISA"), _C.isa())

ISA: str | None = _C.isa() if _C is not None else None
"""The instruction set that the C++ kernels run with."""

MULTIPLIES_BF16 = bool(_C) and _C.multiplies_bf16
"""Whether the CPU has bf16 products, which ATen makes use of and our kernels do not."""

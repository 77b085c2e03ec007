"""What a user could run instead of an op: one file for each op, found by the op's name.

`peers/<op>.py` holds `PEERS`. An op without a file is measured against its reference, eager and
compiled.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lamina.spec import Sample, Spec

MODES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Setting:
    """Where a benchmark runs."""

    device: torch.device
    threads: int


@dataclass(frozen=True)
class Peer:
    """Another way to compute an op.

    make(sample, setting) gives a function with the arguments of the op's functional form. It is
    called once for each shape and mode; what it compiles is not timed.
    modes, device: where it exists; None is any device.
    refuses: why it can't take a sample, or None.
    layout: the memory format in which it is handed 4-D tensors, and gradients.
    apart: why it is shown, but not counted as the best peer: it solves an easier problem.
    """

    name: str
    make: Callable[[Sample, Setting], Callable[..., Tensor]]
    modes: tuple[str, ...] = MODES
    device: str | None = None
    refuses: Callable[[Sample], str | None] = lambda sample: None
    layout: torch.memory_format | None = None
    apart: str | None = None


def compiled(
    function: Callable[..., Tensor], setting: Setting, **more: Any
) -> Callable[..., Tensor]:
    """torch.compile at its best for static shapes, on the threads of the benchmark."""
    # Inductor's cache does not tell instruction sets apart: what was compiled for AVX-512, or the
    # weights that were packed for it, would be loaded with ATEN_CPU_CAPABILITY=avx2 (or the other
    # way round), give wrong results or NaN, and spoil the heap.
    options: dict[str, Any] = {"cpp.threads": setting.threads, "fx_graph_cache": False, **more}
    if setting.device.type == "cuda":
        options |= torch._inductor.list_mode_options("max-autotune-no-cudagraphs")
        options["triton.enable_persistent_tma_matmul"] = True
    return torch.compile(function, dynamic=False, fullgraph=True, options=options)


def alternatives(name: str, function: Callable[..., Tensor], **options: Any) -> tuple[Peer, Peer]:
    """The same plain torch code, eager and compiled; options are Peer's."""
    return (
        Peer(name, lambda sample, setting: function, **options),
        Peer(f"{name} compiled", lambda sample, setting: compiled(function, setting), **options),
    )


def peers_of(spec: Spec) -> tuple[Peer, ...]:
    """The peers of an op, in the order of their columns."""
    name = f"{__name__}.{spec.name}"
    if importlib.util.find_spec(name) is None:
        return alternatives("eager", spec.reference)
    return importlib.import_module(name).PEERS

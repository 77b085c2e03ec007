"""What an op tells of itself: `SPEC` at the end of every op's file in lamina.layers.

The generic tests, `lamina check` and `lamina bench` iterate the specs; nothing else lists the ops.
The calls that they make of an op are its cases, in the file of the same name in lamina.cases.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from types import ModuleType
from typing import Any

import torch

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sample:
    """One call of an op's functional form. Tensors that require grad are differentiated.

    bar: its error against float64 may be so many times the error that plain torch makes.
    overwrites: the call writes into its first argument, and is given a copy of it (`fresh`).
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    bar: float = 2.0
    overwrites: bool = False

    def fresh(self) -> Sample:
        """The sample to make one call with."""
        if not self.overwrites:
            return self
        return replace(self, args=(self.args[0].clone(), *self.args[1:]))


@dataclass(frozen=True)
class BadInput:
    """A call that must raise `error` with a message that matches `match`, on every backend."""

    name: str
    args: tuple[Any, ...]
    error: type[Exception]
    match: str
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """A benchmark shape: `build(dtype, device)` makes its call; costs are of the forward pass.

    flops counts multiply and add as two; elements counts what must be read and written at least.
    The backward pass costs `backward` times the forward one.
    """

    name: str
    build: Callable[[torch.dtype, torch.device], Sample]
    flops: int
    elements: int
    backward: float = 2.0


def supports_everything(backend: str, *call: object) -> list[str]:
    """`Spec.unsupported` of an op whose kernels take every call of their dtypes and device."""
    return []


def never_slower(backend: str, *call: object) -> str | None:
    """`Spec.slower` of an op whose kernels win at every size."""
    return None


def nothing_to_add(backend: str, *call: object) -> str:
    """`Spec.how` of an op with one way to compute on each backend."""
    return ""


@dataclass(frozen=True)
class Spec:
    """An op, as the rest of the house sees it. Its cases are loaded when they are asked for.

    name: the registered ops are lamina::<name>_forward and lamina::<name>_backward.
    functional: the public form; takes `backend=`.
    reference: differentiable plain torch with the same arguments less `backend`; the definition.
    unsupported(backend, *tensors, *options): why a backend's kernel can't take this call.
    slower(backend, *tensors, *options): why ATen is the faster choice for this call, or None;
        asked only when the choice is Lamina's.
    how(backend, *tensors, *options): what `explain` adds to the backend that runs this call.
    """

    name: str
    functional: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    order: tuple[str, ...] = ("cpp", "cuda", "triton")
    unsupported: Callable[..., list[str]] = supports_everything
    slower: Callable[..., str | None] = never_slower
    how: Callable[..., str] = nothing_to_add

    @property
    def _cases(self) -> ModuleType:
        file = self.functional.__module__.rpartition(".")[2]
        return importlib.import_module(f"lamina.cases.{file}")

    def samples(self, dtype: torch.dtype, device: torch.device) -> Iterable[Sample]:
        """Small calls that cover every argument, layout and edge."""
        return self._cases.samples(dtype, device)

    def bad_inputs(self, device: torch.device) -> Iterable[BadInput]:
        """Calls that must raise."""
        return self._cases.bad_inputs(device)

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The benchmark's shapes."""
        return self._cases.WORKLOADS

    def workloads_on(self, device: torch.device) -> tuple[Workload, ...]:
        """The same for one device: what keeps a CPU busy is over on a GPU before it began."""
        on_gpu = device.type == "cuda"
        return getattr(self._cases, "GPU_WORKLOADS", self.workloads) if on_gpu else self.workloads

    def workloads_like(self, pattern: str, device: torch.device) -> tuple[Workload, ...]:
        """The device's workloads whose names match, or the one that a name of that form stands for.

        The cases' `workload` makes one from its sizes: whoever has 24x2048x2048 can ask for it.
        Their MORE_WORKLOADS are the CPU's that "*", which is everybody's default, leaves out.
        """
        known = self.workloads_on(device)
        if pattern != "*" and device.type == "cpu":
            known += getattr(self._cases, "MORE_WORKLOADS", ())
        found = tuple(w for w in known if fnmatch(w.name, pattern))
        make = getattr(self._cases, "workload", None)
        if found or make is None:
            return found
        sizes = [int(size) for size in re.findall("[0-9]+", pattern)]
        sizes = sizes[: len(inspect.signature(make).parameters)]
        with suppress(TypeError):  # Fewer sizes than it takes.
            made = make(*sizes)
            return (made,) if made.name == pattern else ()
        return ()


@cache
def specs() -> dict[str, Spec]:
    """Every op's spec by name, found by looking through lamina.layers; _template is no op."""
    import lamina.layers

    found = {}
    for module in pkgutil.iter_modules(lamina.layers.__path__, "lamina.layers."):
        if not module.name.rpartition(".")[2].startswith("_"):
            spec = getattr(importlib.import_module(module.name), "SPEC", None)
            if spec is not None:
                found[spec.name] = spec
    return found

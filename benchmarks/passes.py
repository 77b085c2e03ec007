"""The passes of an op, each alone: the registered functions that one training step calls.

`forward` saves what the backward pass needs. `backward` makes all gradients that the step wants,
`grad_<argument>` that one alone. Runs with older versions of Lamina, which compare.py measures.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamina.spec import Sample, Spec

SHORTEST = 1e-3  # seconds: shorter calls are timed several at once
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Pass:
    """A registered function and its arguments."""

    op: str
    name: str
    function: Any
    args: tuple[Any, ...]

    def run(self) -> list[Tensor]:
        """The results."""
        with torch.no_grad():
            made = self.function(*self.args)
        made = made if isinstance(made, (tuple, list)) else [made]
        return [tensor for tensor in made if tensor is not None]

    @property
    def needs(self) -> list[bool]:
        """Which gradients it is asked for; empty if it is nothing that one asks."""
        last = self.args[-1]
        return last if isinstance(last, list) and all(isinstance(n, bool) for n in last) else []


class _Recorder(TorchDispatchMode):
    """Keeps the calls of Lamina's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        if function.namespace == "lamina":
            given = (a.detach() if isinstance(a, Tensor) else a for a in args)
            self.calls.append((function, tuple(given)))
        return function(*args, **(kwargs or {}))


def fresh(sample: Sample) -> Sample:
    """What one call is made with; in old versions of Lamina no call overwrites its sample."""
    return sample.fresh() if hasattr(sample, "fresh") else sample


def passes(spec: Spec, sample: Sample) -> dict[str, Pass]:
    """By name, the passes of a sample on the C++ kernels; ValueError where these can't run it."""
    given = fresh(sample)
    with _Recorder() as recorder:
        output = spec.functional(*given.args, **{**given.kwargs, "backend": "cpp"})
        output.backward(torch.randn_like(output))
    forward, backward = (
        Pass(spec.name, name, *call) for name, call in zip(("forward", "backward"), recorder.calls)
    )
    found = [forward, backward]
    needs = backward.needs
    for i, argument in enumerate(forward.function._schema.arguments[: len(needs)]):
        if needs[i] and sum(needs) > 1:
            alone = [j == i for j in range(len(needs))]
            args = (*backward.args[:-1], alone)
            found.append(Pass(spec.name, f"grad_{argument.name}", backward.function, args))
    return {one.name: one for one in found}


def keep_memory() -> None:
    """Let malloc keep what is freed: page faults of fresh results are not the kernels' time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # glibc's
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def timer(call: Callable[[], object], clock: Callable[[], float]) -> Callable[[], float]:
    """Seconds a call by a clock; short calls are averaged over many."""

    def measure(count: int) -> float:
        begin = clock()
        for _ in range(count):
            call()
        return (clock() - begin) / count

    measure(1)
    count = max(1, round(SHORTEST / measure(2)))
    return lambda: measure(count)

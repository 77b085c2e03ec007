"""Which implementation runs a call, and why.

`reference` is plain torch and runs everything; `cpp`, `cuda` and `triton` are kernels. Left alone,
Lamina takes the first backend of an op's order that can run the call and is not slower than ATen on
it. `backend=`, `use_backend(...)` and the environment's LAMINA_BACKEND (in this order) ask for one
by name; what is asked for and cannot be met is a ValueError that says why, for every backend.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from lamina.modules import missing

if TYPE_CHECKING:
    from lamina.spec import Spec


@dataclass(frozen=True)
class Backend:
    """Where a backend's ops are registered and whose tensors they take.

    automatic: whether Lamina takes it unasked. Kernels that no GPU has run and timed yet are taken
    by name only: what is neither proven nor measured must not replace ATen behind a user's back.
    """

    namespace: str
    device: str
    missing: str | None
    automatic: bool = False


BACKENDS: dict[str, Backend] = {
    "cpp": Backend("lamina", "cpu", missing["cpp"], automatic=True),
    "cuda": Backend("lamina", "cuda", missing["cuda"]),
    "triton": Backend("lamina_triton", "cuda", missing["triton"]),
}
NAMES = ("reference", *BACKENDS)


class Kernels(NamedTuple):
    """An op's registered functions on one backend; forward_ is the one that works in place."""

    forward: Any
    backward: Any
    forward_: Any


class Decision(NamedTuple):
    """One call's choice: the op, the backend that runs it, why each other one does not, and how."""

    op: str
    backend: str
    reasons: dict[str, list[str]]
    how: str = ""


class _Choice(threading.local):
    """This thread's wishes. `free` says that there are none: neither a backend nor a record."""

    name: str | None = None
    record: list[Decision] | None = None
    free: bool = not os.environ.get("LAMINA_BACKEND")

    def update(self, name: str | None, record: list[Decision] | None) -> None:
        self.name, self.record = name, record
        self.free = not (name or _from_environment) and record is None


choice = _Choice()


def _checked(name: str | None, source: str) -> str | None:
    if name is not None and name not in NAMES:
        raise ValueError(f"{source} is {name!r}; the backends are {', '.join(NAMES)}")
    return name


_from_environment = _checked(os.environ.get("LAMINA_BACKEND") or None, "LAMINA_BACKEND")


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run Lamina's ops of this thread on one backend; None gives the choice back to Lamina.

    Raises ValueError for an unknown name, and each call inside raises if the backend can't run it.
    """
    before = choice.name
    choice.update(_checked(name, "use_backend's argument"), choice.record)
    try:
        yield
    finally:
        choice.update(before, choice.record)


@contextmanager
def record_decisions() -> Iterator[list[Decision]]:
    """Collect the decision of every Lamina op that this thread calls inside the block."""
    before, record = choice.record, []
    choice.update(choice.name, record)
    try:
        yield record
    finally:
        choice.update(choice.name, before)


_registered: dict[tuple[str, str], Kernels | None] = {}  # A dict, which Dynamo can look into.


def _lookup(namespace: str, op: str) -> Kernels | None:
    if (namespace, op) not in _registered:
        ops = getattr(torch.ops, namespace)
        found = [getattr(ops, f"{op}_{name}", None) for name in Kernels._fields]
        _registered[namespace, op] = found[0] and Kernels(*(f and f.default for f in found))
    return _registered[namespace, op]


def kernels(op: str, backend: str) -> Kernels:
    """The registered functions of an op on a backend that `choose` gave."""
    found = _lookup(BACKENDS[backend].namespace, op)
    assert found is not None, f"{op} has no {backend} kernels"
    return found


def transformed() -> bool:
    """Whether a functorch transform or forward-mode AD, which kernels have no rules for, is on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wants_grad(*tensors: torch.Tensor | None, warn: bool = True) -> bool:
    """Whether a call on these tensors must be differentiable.

    torch.jit.trace cannot write down an autograd.Function, and records once more under no_grad to
    compare: it gets the plain ops either way, and a warning where they lose a gradient. `slower`,
    which may yet choose ATen, asks without the warning.
    """
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if wanted and torch.jit.is_tracing():
        if warn:
            warnings.warn(
                "torch.jit.trace records Lamina's kernels as plain ops, which TorchScript cannot "
                "differentiate; to train, trace inside lamina.use_backend('reference')",
                torch.jit.TracerWarning,
                stacklevel=3,
            )
        return False
    return wanted


def _to_onnx() -> bool:
    """Whether an exporter to ONNX records. Asked last, since asking it takes a microsecond."""
    recording = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return recording and torch.onnx.is_in_onnx_export()


def _special(tensor: torch.Tensor) -> str | None:
    """What makes a tensor more than numbers in strided memory; None if nothing does."""
    kind = type(tensor)
    if kind not in (torch.Tensor, torch.nn.Parameter) and not isinstance(tensor, FakeTensor):
        return f"{kind.__name__} is a tensor subclass with rules of its own"
    if tensor.is_nested:
        return "kernels have no rules for nested tensors"
    return None if tensor.layout == torch.strided else f"a tensor's layout is {tensor.layout}"


def refusals(
    spec: Spec, name: str, tensors: tuple[torch.Tensor | None, ...], options: tuple[Any, ...]
) -> list[str]:
    """Why a backend cannot run this call; empty if it can."""
    if name == "reference":
        return []
    backend = BACKENDS[name]
    if backend.missing:
        return [backend.missing]
    if _lookup(backend.namespace, spec.name) is None:
        return [f"{spec.name} has no {name} kernel"]
    first = tensors[0]
    reasons = []
    if first.device.type != backend.device:
        reasons.append(f"the input is on {first.device.type}, its kernels take {backend.device}")
    if first.dtype not in spec.dtypes:
        reasons.append(f"{first.dtype} is not among its dtypes")
    for tensor in tensors:
        if tensor is not None and (special := _special(tensor)):
            reasons.append(special)
    if transformed():
        reasons.append("a functorch transform or forward-mode AD is active")
    if _to_onnx():
        reasons.append("an ONNX file can hold plain torch only")
    reasons = reasons or spec.unsupported(name, *tensors, *options)
    if not reasons and name == "triton":
        reasons = sys.modules[f"lamina.triton_kernels.{spec.name}"].unsupported(*tensors, *options)
    return reasons


def below(size: int, bound: int) -> bool:
    """size < bound; of a size that torch.export leaves open, whether it is so for all of them.

    An ordinary comparison would bound the size of the exported program.
    """
    if not torch.compiler.is_exporting():
        return size < bound
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(size < bound)


def choose(
    spec: Spec,
    backend: str | None,
    tensors: tuple[torch.Tensor | None, ...],
    options: tuple[Any, ...] = (),
) -> str:
    """The backend that runs this call.

    Raises ValueError if one was asked for by name and cannot.
    """
    wanted = _checked(backend, f"{spec.name}: backend") or choice.name or _from_environment
    if wanted is not None:
        if refusals(spec, wanted, tensors, options):
            raise ValueError(_refused(spec, wanted, tensors, options))
        chosen = wanted
    else:
        chosen = "reference"
        for name in spec.order:
            if not BACKENDS[name].automatic or spec.slower(name, *tensors, *options):
                continue
            if not refusals(spec, name, tensors, options):
                chosen = name
                break
    if choice.record is not None and not torch.compiler.is_compiling():
        choice.record.append(_explained(spec, chosen, wanted, tensors, options))
    return chosen


def _refused(
    spec: Spec, wanted: str, tensors: tuple[torch.Tensor | None, ...], options: tuple[Any, ...]
) -> str:
    lines = [f"{spec.name}: backend {wanted!r} was asked for and cannot run this call."]
    for name in NAMES:
        reasons = refusals(spec, name, tensors, options)
        lines.append(f"  {name}: {'; '.join(reasons) if reasons else 'can run it'}")
    return "\n".join(lines)


def _explained(
    spec: Spec,
    chosen: str,
    wanted: str | None,
    tensors: tuple[torch.Tensor | None, ...],
    options: tuple[Any, ...],
) -> Decision:
    reasons = {}
    for name in NAMES:
        if name == chosen:
            continue
        why = refusals(spec, name, tensors, options)
        if not why and wanted:
            why = [f"{wanted} was asked for"]
        elif not why and name == "reference":
            why = ["a kernel fits"]
        elif not why and not BACKENDS[name].automatic:
            why = ["its kernels have not been run on a GPU yet: ask for it by name"]
        elif not why:
            why = [spec.slower(name, *tensors, *options) or f"{chosen} comes first in the order"]
        reasons[name] = why
    return Decision(spec.name, chosen, reasons, spec.how(chosen, *tensors, *options))

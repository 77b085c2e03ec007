"""The registered ops refuse what their kernels can't take.

Python checks every call of a functional form, but an exported program, or anybody with torch.ops,
calls the ops themselves: that may raise, and must not touch memory that is not theirs. `make
sanitize` runs this under AddressSanitizer, and the host shim checks every address of the CUDA
kernels.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamina.accuracy import run, supported, tensors_of
from lamina.spec import specs

# Calls of an op that mutants are made of; the interpreter takes its time.
CALLS = {"cpp": 6, "cuda": 6, "triton": 1}
LONGEST = 60  # seconds for one call
FOUND_BY_THE_SHIM = re.compile("bytes at|outside of|race in|waited for|meet at different")


class Recorder(TorchDispatchMode):
    """Keeps the calls of Lamina's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace.startswith("lamina"):
            self.calls.append((op, args))
        return op(*args, **(kwargs or {}))


def other_tensors(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Like `tensor`, but for one thing."""
    tensor = tensor.detach()
    for d in range(tensor.dim()):
        if tensor.shape[d]:
            yield f"shorter in {d}", tensor.narrow(d, 0, tensor.shape[d] - 1)
            yield f"longer in {d}", torch.cat([tensor, tensor.narrow(d, 0, 1)], d)
    if tensor.dim():
        yield "flat", tensor.reshape(-1)
        yield "transposed", tensor.transpose(0, -1)
    yield "nothing", tensor.new_empty(0)
    yield "one number", tensor.new_zeros(())
    yield "one dimension more", tensor.unsqueeze(0)
    yield "expanded", tensor.new_zeros(()).expand(tensor.shape)
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        yield str(dtype), tensor.to(dtype)
    yield "on meta", tensor.to("meta")


def other_values(value: Any) -> Iterator[tuple[str, Any]]:
    """What one argument is replaced by."""
    if isinstance(value, Tensor):
        yield from other_tensors(value)
    elif value is None:
        yield "a tensor", torch.ones(1)
    elif isinstance(value, bool):
        yield "the opposite", not value
    elif isinstance(value, (int, float)):
        for number in (-1, 0, 1, 10**9):
            yield str(number), type(value)(number)
    elif isinstance(value, str):
        yield "nonsense", "nonsense"
    elif isinstance(value, (list, tuple)) and value:
        yield "one less", list(value)[:-1]
        others = (True,) if isinstance(value[0], bool) else (-1, 0, 30, 10**12)
        for other in others:
            yield f"all {other}", [other] * len(value)


def mutants(calls: list[tuple[Any, tuple]], most: int) -> Iterator[tuple[str, Any, list]]:
    """Each call with one argument replaced, of at most so many calls of an op."""
    used: Counter = Counter()
    for op, args in calls:
        used[op] += 1
        if used[op] > most:
            continue
        for i, value in enumerate(args):
            for what, other in other_values(value):
                name = op._schema.arguments[i].name
                yield f"{op}: {name} {what}", op, [*args[:i], other, *args[i + 1 :]]


def restrided(tensor: Tensor) -> Iterator[Tensor]:
    """The same numbers in other strides."""
    if tensor.dim() > 1 and tensor.is_floating_point():
        backwards = tuple(reversed(range(tensor.dim())))
        yield tensor.detach().permute(backwards).contiguous().permute(backwards)
        yield torch.stack([tensor.detach()] * 2, -1)[..., 0]


@pytest.mark.parametrize("spec", specs().values(), ids=list(specs()))
@pytest.mark.parametrize("backend", ["cpp", "cuda", "triton"], indirect=True)
def test_strides_are_heeded_or_refused(spec, backend):
    """Functional forms lay out tensors for the kernels; callers of torch.ops may not."""
    name, device = backend
    recorder = Recorder()
    for sample in spec.samples(torch.float32, device):
        plain = all(t.numel() and t.isfinite().all() for t in tensors_of(sample))
        if plain and supported(spec, sample):
            with recorder:
                run(spec.functional, sample)
    used: Counter = Counter()
    for op, args in recorder.calls:
        used[op] += 1
        # The bits of threshold lie as its argument lies.
        if used[op] > CALLS[name] or spec.name == "threshold":
            continue
        wanted = op(*args)
        for i, value in enumerate(args):
            for other in restrided(value) if isinstance(value, Tensor) else ():
                try:
                    found = op(*args[:i], other, *args[i + 1 :])
                except (RuntimeError, ValueError):
                    continue
                what = f"{op}: {op._schema.arguments[i].name}, {other.stride()}"
                torch.testing.assert_close(found, wanted, msg=what)


def call_in_a_child(work: list[tuple[str, Any, list]]) -> Iterator[str]:
    """What the calls raise, a line each; the last line names the call that ended the process."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        torch.set_num_threads(1)  # the pool of threads did not survive the fork
        for name, op, args in work:
            os.write(there, f"{name}\n".encode())
            signal.alarm(LONGEST)
            try:
                op(*args)
            except Exception as error:
                first = (str(error).splitlines() or [""])[0]
                os.write(there, f"  {name}: {type(error).__name__}: {first}\n".encode())
        os.write(there, b"done\n")
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as lines:
        yield from lines
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spec", specs().values(), ids=list(specs()))
@pytest.mark.parametrize("backend", ["cpp", "cuda", "triton"], indirect=True)
def test_ops_refuse_what_they_cannot_take(spec, backend):
    name, device = backend
    if device.type == "cuda":
        pytest.skip("a GPU does not survive a fork; the host shim looks at the same code")
    recorder = Recorder()
    for sample in spec.samples(torch.float32, device):
        if supported(spec, sample) and all(t.numel() for t in tensors_of(sample)):
            with recorder:
                run(spec.functional, sample)
    if not recorder.calls:
        pytest.skip(f"{spec.name} has no kernel there")
    work = list(mutants(recorder.calls, CALLS[name]))
    lines = list(call_in_a_child(work))
    assert lines[-1] == "done\n", f"ended the process: {lines[-1]}"
    raised = [line for line in lines if line.startswith("  ")]
    assert len(raised) > len(work) / 5
    for line in raised:
        assert not FOUND_BY_THE_SHIM.search(line), line

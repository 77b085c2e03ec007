"""What a call costs in memory, beside its inputs and its results."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lamina.accuracy import tensors_of
from lamina.spec import Sample
from lamina.workspace import release_workspace


def _bytes(tensors: list[Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def saved_bytes(call: Callable[..., Tensor], sample: Sample) -> int:
    """Bytes that autograd keeps for the backward pass, not counting the inputs and parameters."""
    sample = sample.fresh()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call(*sample.args, **sample.kwargs)
    given = {t.untyped_storage().data_ptr() for t in tensors_of(sample)}
    kept = _bytes([t for t in saved if t.untyped_storage().data_ptr() not in given])
    del output
    return kept


def peak_bytes(call: Callable[..., Tensor], sample: Sample, mode: str, grad: Tensor) -> int:
    """The most memory that torch's allocator gave out at once, less the output and the gradients.

    Lamina's own scratch counts too; what other libraries keep (MKL, oneDNN) can't be seen.
    """
    wanted = [t for t in tensors_of(sample) if t.requires_grad]
    for tensor in wanted:
        tensor.grad = None
    given = sample.fresh()

    def step() -> Tensor:
        output = call(*given.args, **given.kwargs)
        if mode != "forward":
            output.backward(grad)
        return output

    release_workspace()
    peak, output = (_cuda_peak if grad.is_cuda else _cpu_peak)(step)
    peak += release_workspace()
    results = [t.grad for t in wanted if t.grad is not None]
    if not sample.overwrites:
        results.append(output)
    for tensor in wanted:
        tensor.grad = None
    return max(0, peak - _bytes(results))


def _cuda_peak(step: Callable[[], Tensor]) -> tuple[int, Tensor]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, output


@contextmanager
def _no_stderr() -> Iterator[None]:
    """The profiler's library writes a line to stderr, past Python, whenever it starts or stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _cpu_peak(step: Callable[[], Tensor]) -> tuple[int, Tensor]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        _no_stderr(),
        torch.profiler.profile(activities=activities, profile_memory=True) as profile,
    ):
        output = step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, output

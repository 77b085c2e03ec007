"""Time several ways to do one thing, interleaved, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lamina.accuracy import tensors_of
from lamina.spec import Sample

Timer = Callable[[], float]
LEAST_ROUNDS, MOST_ROUNDS = 5, 100
SHORTEST = 1e-3  # seconds: shorter calls are timed several at once
ROTATION = 4  # inputs of a GPU benchmark fill its L2 cache so many times
MOST_COPIES = 256


@dataclass(frozen=True)
class Step:
    """One call in one mode: run() is timed, prepare() before it is not."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


def make_step(call: Callable[..., Tensor], sample: Sample, mode: str, grad: Tensor) -> Step:
    """forward: no gradient wanted. both: forward and backward, as a training step runs them.

    backward: the backward pass of a forward pass that is not timed. Gradients are dropped before
    they are computed again, inside the timed part, for all alike. What a call overwrites is copied
    before, which is not timed.
    """
    wanted = [t for t in tensors_of(sample) if t.requires_grad]
    given = sample

    def renew() -> None:
        nonlocal given
        given = sample.fresh()

    def forward() -> Tensor:
        return call(*given.args, **given.kwargs)

    def clear() -> None:
        for tensor in wanted:
            tensor.grad = None

    def both() -> None:
        clear()
        forward().backward(grad)

    before = renew if sample.overwrites else None
    if mode == "forward":
        return Step(forward, before)
    if mode == "both":
        return Step(both, before)
    output: list[Tensor] = []

    def prepare() -> None:
        clear()
        renew()
        output[:] = [forward()]

    return Step(lambda: output.pop().backward(grad), prepare)


def mode_context(mode: str) -> torch.no_grad | nullcontext:
    """What the calls of a mode run in."""
    return torch.no_grad() if mode == "forward" else nullcontext()


def cpu_timer(step: Step) -> Timer:
    """Seconds a call, by the clock; short calls are averaged over many."""

    def measure(count: int) -> float:
        clock = time.perf_counter
        if step.prepare is None:
            begin = clock()
            for _ in range(count):
                step.run()
            return (clock() - begin) / count
        total = 0.0
        for _ in range(count):
            step.prepare()
            begin = clock()
            step.run()
            total += clock() - begin
        return total / count

    count = 1
    if measure(1) < SHORTEST:
        measure(2)
        count = max(1, round(SHORTEST / measure(1)))
    return lambda: measure(count)


def copies_beyond_cache(sample: Sample) -> list[Sample]:
    """Copies of the sample that together are larger than the GPU's L2 cache."""
    tensors = tensors_of(sample)
    cache = torch.cuda.get_device_properties(tensors[0].device).L2_cache_size
    bytes_each = sum(t.numel() * t.element_size() for t in tensors) or 1
    count = min(MOST_COPIES, 1 + ROTATION * cache // bytes_each)

    def copy(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    return [
        replace(
            sample,
            args=tuple(copy(a) for a in sample.args),
            kwargs={k: copy(v) for k, v in sample.kwargs.items()},
        )
        for _ in range(count)
    ]


def gpu_timer(steps: list[Step]) -> tuple[Timer, str]:
    """Seconds a call on the GPU: replays of a CUDA graph of all steps, "graph", or plain launches.

    Launches ("events") are for steps that can't be captured, and for those with a `prepare`, whose
    tensors would be freed under the graph; below some 100 µs a call they time the host.
    """

    def prepare() -> None:
        for step in steps:
            if step.prepare:
                step.prepare()

    def launch() -> None:
        for step in steps:
            step.run()

    for _ in range(3):  # Compiles, autotunes, and makes what a capture must not allocate.
        prepare()
        launch()
    torch.cuda.synchronize()
    graph = None if steps[0].prepare else _captured(launch)
    run = graph.replay if graph else launch

    def measure() -> float:
        prepare()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / len(steps)

    measure()
    return measure, "graph" if graph else "events"


def _captured(launch: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            launch()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


def interleave(timers: dict[str, Timer], first: str, seconds: float) -> dict[str, dict[int, float]]:
    """Time all in rounds, in a new random order each: {name: {round: seconds a call}}.

    `first` is in every round. Each other one drops out when it has used its share of `seconds`, but
    not before LEAST_ROUNDS: one slow peer must not cost the others their repetitions.
    """
    order = list(timers)
    shuffle = random.Random(0).shuffle
    share = seconds / max(1, len(timers))
    spent = dict.fromkeys(timers, 0.0)
    times: dict[str, dict[int, float]] = {name: {} for name in timers}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(MOST_ROUNDS):
            active = [n for n in order if number < LEAST_ROUNDS or spent[n] < share]
            if not active or (active == [first] and len(timers) > 1):
                break
            if first not in active:
                active.append(first)
            shuffle(active)
            for name in active:
                begin = time.perf_counter()
                times[name][number] = timers[name]()
                spent[name] += time.perf_counter() - begin
    finally:
        if collecting:
            gc.enable()
    return times


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """(median, interquartile range)."""
    if len(values) < 2:
        return values[0], 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low

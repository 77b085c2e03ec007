"""`lamina bench`: an op on its benchmark shapes against everything a user could run instead."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from lamina.bench import memory, roofline, timing
from lamina.bench.case import Case, cases_of, check_wishes, without_kernels
from lamina.bench.judge import Judge
from lamina.bench.peers import Setting
from lamina.bench.providers import Provider, lamina_providers, peer_providers, to_layout
from lamina.bench.report import print_rows
from lamina.bench.row import LAMINA, Row, commit, installed, write_csv, write_json
from lamina.console import progress
from lamina.info import device_name
from lamina.spec import specs

SHORTEST, LONGEST = 2.0, 10.0  # seconds of timing for one case, whatever the budget
# Within rounding of a kink, as relu's at 0, a value's gradient is either side's. A peer may meet
# that, so it is wrong if it is on every draw; Lamina is wrong if it is on one.
DRAWS = 3


@contextmanager
def _settings(setting: Setting, tf32: bool) -> Iterator[None]:
    """One thread count and one precision for all; torch's own choice of algorithms at its best."""
    threads, matmul = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(setting.threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    # One stream for everything, since graphs are captured on it and it can't be the default.
    on_gpu = setting.device.type == "cuda"
    stream = torch.cuda.stream(torch.cuda.Stream()) if on_gpu else nullcontext()
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32), stream:
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = matmul


def _timers(
    providers: list[Provider], mode: str, grad: Tensor
) -> dict[str, tuple[timing.Timer, str]]:
    found, copies = {}, {}
    for p in providers:
        if grad.is_cuda:
            torch.cuda.empty_cache()
        incoming = to_layout(grad, p.layout)
        if not grad.is_cuda:
            step = timing.make_step(p.call, p.sample, mode, incoming)
            found[p.name] = timing.cpu_timer(step), "clock"
            continue
        if id(p.sample) not in copies:
            copies[id(p.sample)] = timing.copies_beyond_cache(p.sample)
        steps = [timing.make_step(p.call, c, mode, incoming) for c in copies[id(p.sample)]]
        try:
            found[p.name] = timing.gpu_timer(steps)
        except torch.OutOfMemoryError:
            if p.name == LAMINA:
                raise
    return found


def _judged(
    case: Case,
    setting: Setting,
    seed: int,
    peers: Sequence[str] | None,
    kernels: Sequence[str] | None,
) -> tuple[list[Provider], dict[str, str | None], list[str], Tensor]:
    """What can run one draw of the case, what is wrong with each, notes, and the gradient."""
    torch._dynamo.reset()  # A new shape is a new program, not a reason to generalise the last one.
    torch.manual_seed(seed)
    sample = case.workload.build(case.dtype, setting.device)
    judge = Judge(case, sample)
    others, notes = peer_providers(case, sample, setting, peers)
    providers = [*lamina_providers(case.spec, sample, case.mode, kernels), *others]
    problems = {p.name: judge.problem(p) for p in providers}
    notes += [f"{name} is WRONG: {problem}" for name, problem in problems.items() if problem]
    notes += [judge.note] if judge.note else []
    return providers, problems, notes, judge.grad


def _measure(
    case: Case,
    setting: Setting,
    deadline: float,
    peers: Sequence[str] | None,
    kernels: Sequence[str] | None,
) -> tuple[list[Row], list[str]]:
    """All rows of one case, and the notes on what is missing from them."""
    for seed in range(DRAWS):
        providers, problems, notes, grad = _judged(case, setting, seed, peers, kernels)
        at_a_kink = any("gradient" in (problems[p.name] or "") for p in providers if not p.ours)
        if not at_a_kink or any(problems[p.name] for p in providers if p.ours):
            break
    costs = {p.name: _memory(p, case.mode, grad) for p in providers}
    with timing.mode_context(case.mode):
        timers = _timers(providers, case.mode, grad)
        notes += [f"{p.name}: out of memory" for p in providers if p.name not in timers]
        providers = [p for p in providers if p.name in timers]
        seconds = min(LONGEST, max(SHORTEST, deadline - time.perf_counter()))
        times = timing.interleave({n: t for n, (t, _) in timers.items()}, LAMINA, seconds)
    peaks = roofline.measure(setting.device, setting.threads)
    rows = []
    for provider in providers:
        own, lamina = times[provider.name], times[LAMINA]
        median, spread = timing.median_and_spread(list(own.values()))
        ratio, spread = 1.0, spread / median
        if provider.name != LAMINA:
            ratio, spread = timing.median_and_spread([own[i] / lamina[i] for i in own])
        problem = problems[provider.name]
        comparable = not problem and not problems[LAMINA]
        peak, saved = costs[provider.name]
        rows.append(
            Row(
                op=case.spec.name,
                shape=case.workload.name,
                dtype=str(case.dtype).removeprefix("torch."),
                mode=case.mode,
                provider=provider.name,
                backend=provider.backend,
                median_ms=median * 1e3,
                ratio_vs_lamina=ratio if comparable else None,
                spread=spread,
                correct=not problem,
                counted=provider.counted,
                roofline=_fraction(peaks, case, median) if not problem else None,
                peak_bytes=peak,
                saved_bytes=saved,
                rounds=len(own),
                timing=timers[provider.name][1],
                note=problem or "",
                device=device_name(setting.device),
                threads=setting.threads,
                versions=installed(),
                commit=commit(),
            )
        )
    return rows, [f"{case}: {note}" for note in notes]


def _out_of_memory(error: RuntimeError) -> bool:
    """torch has a class for a GPU's memory, and a sentence for the CPU's."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _memory(provider: Provider, mode: str, grad: Tensor) -> tuple[int | None, int | None]:
    call, sample = provider.call, provider.sample
    with timing.mode_context(mode):
        peak = memory.peak_bytes(call, sample, mode, to_layout(grad, provider.layout))
    return peak, None if mode == "forward" else memory.saved_bytes(call, sample)


def _fraction(peaks: roofline.Peaks | None, case: Case, seconds: float) -> float | None:
    if peaks is None:
        return None
    work = {"forward": 1.0, "backward": case.workload.backward, "both": 1 + case.workload.backward}
    factor = work[case.mode]
    flops, elements = factor * case.workload.flops, factor * case.workload.elements
    return peaks.least_seconds(case.dtype, flops, elements) / seconds


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bench(
    ops: Sequence[str] | None = None,
    *,
    device: torch.device | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    modes: Sequence[str] = ("forward", "both"),
    peers: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
    shapes: Sequence[str] = ("*",),
    threads: int | None = None,
    tf32: bool = False,
    budget: float = 600.0,
    json: Path | None = None,
    csv: Path | None = None,
    plot: Path | None = None,
) -> list[Row]:
    """Measure, print a table for each op, dtype and mode, and return the rows.

    Args:
        ops, shapes, peers: which ones, all by default; shapes and peers are patterns (`*`). A
            shape that is not on the op's list, as linear's 24x2048x2048, is made.
        kernels: which of Lamina's backends beside its own choice; all that run by default.
        budget: seconds for everything, compilation included. Repetitions adapt to it; what it does
            not reach is named at the end.
        json, csv, plot: files to write; json and csv are written again after every case.

    Raises ValueError for a shape, peer or kernel asked for that is not there, and where no op has
    kernels in any of the dtypes.
    """
    device = device or default_device()
    setting = Setting(device, threads or torch.get_num_threads())
    chosen = [specs()[op] for op in dict.fromkeys(ops or specs())]
    check_wishes(chosen, device, shapes, peers, kernels)
    cases = cases_of(chosen, device, dtypes, modes, shapes)
    notes = without_kernels(chosen, dtypes)
    if not cases:
        raise ValueError("\n".join(notes))
    roofline.measure(setting.device, setting.threads)  # Before other programs warm the machine up.
    before = roofline.core_to_core() if device.type == "cpu" else None
    end = time.perf_counter() + budget
    rows: list[Row] = []
    with progress(len(cases)) as advance, _settings(setting, tf32):
        for number, case in enumerate(cases):
            advance(str(case))
            now = time.perf_counter()
            if now > end:
                notes.append(f"{case}: not run, the budget of {budget:.0f} s is used up")
                continue
            share = (end - now) / (len(cases) - number)
            try:
                found, said = _measure(case, setting, now + share, peers, kernels)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                found, said = [], [f"{case}: not run, it takes more memory than there is"]
            rows += found
            notes += said
            if json:
                write_json(rows, json)
            if csv:
                write_csv(rows, csv)
    if before:
        after = roofline.core_to_core()
        notes.append(f"A cache line to another core and back: {before} before, {after} after.")
    print_rows(rows, setting, notes)
    if plot:
        from lamina.bench.plot import plot_rows

        plot_rows(rows, plot)
    return rows

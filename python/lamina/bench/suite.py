"""`lamina bench`: an op on its benchmark shapes against everything a user could run instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lamina import backends
from lamina.bench import memory, roofline, timing
from lamina.bench.peers import Setting, peers_of
from lamina.bench.report import print_rows
from lamina.bench.row import Row, commit, installed, write_csv, write_json
from lamina.check import Expected, double, run
from lamina.console import progress
from lamina.info import device_name
from lamina.spec import Sample, Spec, Workload, specs

LAMINA = "lamina"
SHORTEST, LONGEST = 2.0, 10.0  # seconds of timing for one case, whatever the budget
PEER_SLACK = 10  # A peer is wrong where its error is so many times what our kernels are allowed.
UNJUDGED = 1e-3  # of the largest element: the error allowed where float64 has no room
# Within rounding of a kink, as relu's at 0, a value's gradient is either side's. A peer may meet
# that, so it is wrong if it is on every draw; Lamina is wrong if it is on one.
DRAWS = 3


@dataclass(frozen=True)
class Case:
    """One table cell's worth of work: an op on one shape, in one dtype and mode."""

    spec: Spec
    dtype: torch.dtype
    workload: Workload
    mode: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.spec.name} {self.workload.name} {dtype} {self.mode}"


@dataclass(frozen=True)
class Provider:
    """Lamina, or one of its peers, ready to be called on its sample."""

    name: str
    call: Callable[..., Tensor]
    sample: Sample
    backend: str = ""
    counted: bool = True
    layout: torch.memory_format | None = None

    @property
    def ours(self) -> bool:
        """Whether kernels of Lamina run; ATen's errors differ between memory formats."""
        return self.backend not in ("", "reference")


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


def _chosen(spec: Spec, sample: Sample, mode: str) -> str:
    with backends.record_decisions() as decisions, timing.mode_context(mode):
        spec.functional(*sample.args, **sample.kwargs)
    return decisions[0].backend


def _ours(spec: Spec, sample: Sample, mode: str, wanted: Sequence[str] | None) -> list[Provider]:
    """Lamina as it chooses for itself, then in the peers' layouts and on its other backends."""
    chosen = _chosen(spec, sample, mode)
    providers = [Provider(LAMINA, spec.functional, sample, chosen)]
    for layout in dict.fromkeys(peer.layout for peer in peers_of(spec) if peer.layout):
        given = _in_layout(sample, layout)
        name = f"{LAMINA} {str(layout).removeprefix('torch.')}"
        runs_on = _chosen(spec, given, mode)
        providers.append(
            Provider(name, spec.functional, given, runs_on, counted=False, layout=layout)
        )
    for name in spec.order if wanted is None else dict.fromkeys(wanted):
        if name == chosen:
            continue
        call = partial(spec.functional, backend=name)
        try:
            with timing.mode_context(mode):
                call(*sample.args, **sample.kwargs)
        except ValueError:
            continue  # The kernel refuses the shape; `lamina.explain` says why.
        providers.append(Provider(f"{LAMINA} {name}", call, sample, name, counted=False))
    return providers


def _to_layout(value: object, layout: torch.memory_format | None) -> object:
    if layout is None or not isinstance(value, Tensor) or value.dim() != 4:
        return value
    return value.detach().to(memory_format=layout).requires_grad_(value.requires_grad)


def _in_layout(sample: Sample, layout: torch.memory_format | None) -> Sample:
    if layout is None:
        return sample
    kwargs = {name: _to_layout(value, layout) for name, value in sample.kwargs.items()}
    return Sample(sample.name, tuple(_to_layout(a, layout) for a in sample.args), kwargs)


def _theirs(
    case: Case, sample: Sample, setting: Setting, wanted: Sequence[str] | None
) -> tuple[list[Provider], list[str]]:
    """The peers that can run the case, and what to tell of those that can't."""
    providers, notes = [], []
    for peer in peers_of(case.spec):
        if wanted is not None and not any(fnmatch(peer.name, pattern) for pattern in wanted):
            continue
        if case.mode not in peer.modes or peer.device not in (None, setting.device.type):
            continue
        if reason := peer.refuses(sample):
            notes.append(f"{peer.name}: {reason}")
            continue
        given = _in_layout(sample, peer.layout)
        try:
            with timing.mode_context(case.mode):
                call = peer.make(given, setting)
                call(*given.args, **given.kwargs)
        except Exception as error:
            notes.append(f"{peer.name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        counted = peer.apart is None
        providers.append(Provider(peer.name, call, given, counted=counted, layout=peer.layout))
    return providers, notes


class _Judge:
    """Compares a provider's output, and its gradients where the mode has some, with float64."""

    def __init__(self, case: Case, sample: Sample) -> None:
        self.case = case
        with backends.use_backend("reference"), torch.random.fork_rng():
            plain, plain_grads, self.grad = run(case.spec.reference, sample)
            try:
                exact, exact_grads, _ = run(case.spec.reference, sample, double, grads=self.grad)
            except torch.OutOfMemoryError:
                exact = None
        self.note = None
        if exact is None:
            self.note = f"float64 does not fit: compared with torch's own, within {UNJUDGED:g}"
            exact, exact_grads = plain.double(), [g.double() for g in plain_grads]
        self.output = Expected(exact, plain)
        self.grads = [Expected(e, p) for e, p in zip(exact_grads, plain_grads, strict=True)]
        if self.note:
            for expected in (self.output, *self.grads):
                expected.limit = UNJUDGED * float(expected.exact.abs().max())

    def problem(self, provider: Provider) -> str | None:
        if self.case.mode == "forward":
            with torch.no_grad():
                got = provider.call(*provider.sample.args, **provider.sample.kwargs)
            grads = ()
        else:
            got, grads, _ = run(provider.call, provider.sample, grads=self.grad)
        found = [self.output.compare("output", got)]
        for i, (expected, grad) in enumerate(zip(self.grads, grads)):
            found.append(expected.compare(f"gradient {i}", grad))
        slack = 1 if provider.ours else PEER_SLACK
        return next((c.problem for c in found if not c.error <= slack * c.limit), None)


def _timers(
    providers: list[Provider], mode: str, grad: Tensor
) -> dict[str, tuple[timing.Timer, str]]:
    found, copies = {}, {}
    for p in providers:
        if grad.is_cuda:
            torch.cuda.empty_cache()
        incoming = _to_layout(grad, p.layout)
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
    judge = _Judge(case, sample)
    others, notes = _theirs(case, sample, setting, peers)
    providers = [*_ours(case.spec, sample, case.mode, kernels), *others]
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
        own, ours = times[provider.name], times[LAMINA]
        median, spread = timing.median_and_spread(list(own.values()))
        ratio, spread = 1.0, spread / median
        if provider.name != LAMINA:
            ratio, spread = timing.median_and_spread([own[i] / ours[i] for i in own])
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


def _memory(provider: Provider, mode: str, grad: Tensor) -> tuple[int | None, int | None]:
    call, sample = provider.call, provider.sample
    with timing.mode_context(mode):
        peak = memory.peak_bytes(call, sample, mode, _to_layout(grad, provider.layout))
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


def _cases(
    chosen: Sequence[Spec],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    modes: Sequence[str],
    shapes: Sequence[str],
) -> list[Case]:
    return [
        Case(spec, dtype, workload, mode)
        for spec in chosen
        for dtype in dict.fromkeys(dtypes)
        if dtype in spec.dtypes
        for workload in dict.fromkeys(
            w for pattern in shapes for w in spec.workloads_like(pattern, device)
        )
        for mode in dict.fromkeys(modes)
    ]


def _short(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _without_kernels(chosen: Sequence[Spec], dtypes: Sequence[torch.dtype]) -> list[str]:
    """The ops that are not timed in some dtype: there is nothing of Lamina's to time."""
    return [
        f"{spec.name} has no kernels in {_short(absent)}: ask for {_short(spec.dtypes)}"
        for spec in chosen
        if (absent := [dtype for dtype in dict.fromkeys(dtypes) if dtype not in spec.dtypes])
    ]


def _check_wishes(
    chosen: Sequence[Spec],
    device: torch.device,
    shapes: Sequence[str],
    peers: Sequence[str] | None,
    kernels: Sequence[str] | None,
) -> None:
    """ValueError for a backend that can't run here, and a pattern that nothing matches."""
    for name in kernels or ():
        backend = backends.BACKENDS[name]
        if backend.missing or backend.device != device.type:
            why = backend.missing or f"its kernels take {backend.device}, the device is {device}"
            raise ValueError(f"backend {name} was asked for and cannot run: {why}")
    for pattern in shapes:
        if not any(spec.workloads_like(pattern, device) for spec in chosen):
            known = {spec.name: [w.name for w in spec.workloads_on(device)] for spec in chosen}
            raise ValueError(f"no shape matches {pattern}; there are {known}")
    for pattern in peers or ():
        known = {spec.name: [peer.name for peer in peers_of(spec)] for spec in chosen}
        if not any(fnmatch(name, pattern) for names in known.values() for name in names):
            raise ValueError(f"no peer matches {pattern}; there are {known}")


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
    _check_wishes(chosen, device, shapes, peers, kernels)
    cases = _cases(chosen, device, dtypes, modes, shapes)
    notes = _without_kernels(chosen, dtypes)
    if not cases:
        raise ValueError("\n".join(notes))
    roofline.measure(setting.device, setting.threads)  # Before other programs warm the machine up.
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
            found, said = _measure(case, setting, now + share, peers, kernels)
            rows += found
            notes += said
            if json:
                write_json(rows, json)
            if csv:
                write_csv(rows, csv)
    print_rows(rows, setting, notes)
    if plot:
        from lamina.bench.plot import plot_rows

        plot_rows(rows, plot)
    return rows

"""`lamina check`: every op on every backend, compared with float64 and finite differences.

The rule is that of lamina.accuracy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from lamina import backends
from lamina.accuracy import (
    compare_sample,
    differentiable,
    gradcheck_sample,
    poisoned,
    problems_of,
    supported,
)
from lamina.console import Cell, print_table, progress
from lamina.spec import FLOATS, Sample, Spec, specs


@dataclass
class Result:
    """One op on one backend in one dtype.

    ran: the samples that the backend took. used: the largest error as a share of what is allowed.
    """

    op: str
    backend: str
    dtype: torch.dtype
    ran: int = 0
    used: float = 0.0
    problems: list[str] = field(default_factory=list)
    gradchecks: int = 0
    gradgradchecks: int = 0


def check_op(
    spec: Spec, backend: str, dtype: torch.dtype, device: torch.device, *, second: bool = True
) -> Result:
    """Run every sample of an op on one backend in one dtype.

    float64 samples are also checked by finite differences, once and (if `second`) twice.
    """
    result = Result(spec.name, backend, dtype)
    torch.manual_seed(0)
    with backends.use_backend(backend), poisoned(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")
        for sample in spec.samples(dtype, device):
            try:
                if supported(spec, sample):
                    _check_sample(spec, sample, dtype, device, second, result)
            except Exception as error:
                result.problems.append(f"{sample.name}: {type(error).__name__}: {error}")
    return result


def _check_sample(
    spec: Spec,
    sample: Sample,
    dtype: torch.dtype,
    device: torch.device,
    second: bool,
    result: Result,
) -> None:
    result.ran += 1
    comparisons = compare_sample(spec, sample)
    for comparison in comparisons:
        if not comparison.problem and comparison.limit > 0:
            result.used = max(result.used, comparison.error / comparison.limit)
    result.problems += problems_of(comparisons, spec, sample, dtype, device)
    wanted = differentiable(sample) if dtype == torch.float64 else None
    if wanted:
        checks = [gradcheck_sample(spec, sample, wanted, False)]
        result.gradchecks += 1
        if second:
            checks.append(gradcheck_sample(spec, sample, wanted, True))
            result.gradgradchecks += 1
        result.problems += filter(None, checks)


def places(interpret: bool) -> dict[str, tuple[str | None, torch.device]]:
    """For each backend why it can't run here (or None), and the device it runs on.

    With `interpret`, Triton's kernels run on the CPU, in Triton's interpreter.
    """
    gpu = torch.cuda.is_available()
    found = {"reference": (None, torch.device("cpu"))}
    for name, backend in backends.BACKENDS.items():
        reason = backend.missing
        if reason is None and backend.device == "cuda" and not gpu:
            reason = "no GPU is here"
            if name == "triton":
                reason = None if interpret else f"{reason}; --interpret runs it in the interpreter"
        here = backend.device == "cpu" or not gpu
        found[name] = (reason, torch.device("cpu" if here else "cuda"))
    return found


@contextmanager
def _interpreted(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    from lamina import triton_kernels

    before = backends.BACKENDS["triton"]
    with triton_kernels.interpreted():
        backends.BACKENDS["triton"] = backends.Backend(before.namespace, "cpu", None)
        try:
            yield
        finally:
            backends.BACKENDS["triton"] = before


def check(
    ops: list[str] | None = None,
    names: list[str] | None = None,
    dtypes: list[torch.dtype] | None = None,
    *,
    interpret: bool = False,
    second: bool = True,
) -> bool:
    """Check ops (all) on backends (all) in dtypes (all) and print a table; True if nothing failed.

    A backend asked for by name that can't run here is a failure.
    """
    here = places(interpret)
    chosen = [specs()[op] for op in dict.fromkeys(ops or specs())]
    dtypes = list(dict.fromkeys(dtypes or FLOATS))
    absent = {name: why for name, (why, _) in here.items() if why and (not names or name in names)}
    runnable = [name for name in dict.fromkeys(names or here) if not here[name][0]]
    steps = [(s, n, d) for s in chosen for n in runnable for d in dtypes if d in s.dtypes]
    results: list[Result] = []
    with progress(len(steps)) as advance:
        for spec, name, dtype in steps:
            advance(f"{spec.name} {name} {_short(dtype)}")
            with _interpreted(name == "triton" and here[name][1].type == "cpu"):
                results.append(check_op(spec, name, dtype, here[name][1], second=second))
    _print_results(results, dtypes)
    for result in results:
        for problem in result.problems:
            print(f"FAILED {result.op} {result.backend} {_short(result.dtype)}: {problem}")
    for name, reason in absent.items():
        print(f"not run: {name}: {reason}")
    for spec in chosen:
        if not set(dtypes) & set(spec.dtypes):
            print(f"not run: {spec.name}: its kernels take {', '.join(map(_short, spec.dtypes))}")
    failed = sum(bool(result.problems) for result in results)
    ran = sum(bool(result.ran) for result in results)
    if not ran and not failed:
        print("nothing ran: no op that was asked for has a kernel here in these dtypes")
        return False
    print(f"{failed} of {ran} failed" if failed else f"all {ran} are right")
    return not failed and not (names and absent)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _print_results(results: list[Result], dtypes: list[torch.dtype]) -> None:
    by_row: dict[tuple[str, str], dict[torch.dtype, Result]] = {}
    for result in results:
        by_row.setdefault((result.op, result.backend), {})[result.dtype] = result
    rows = []
    for (op, backend), row in by_row.items():
        cells = [_verdict(row.get(dtype)) for dtype in dtypes]
        exact = row.get(torch.float64)
        counts = (exact.gradchecks, exact.gradgradchecks) if exact else (0, 0)
        rows.append([op, backend, *cells, *(str(count) if count else "-" for count in counts)])
    print_table(
        "Largest error against float64, as a share of what is allowed "
        "(twice torch's own in the dtype, plus two roundings)",
        ["op", "backend", *map(_short, dtypes), "gradchecks", "gradgradchecks"],
        rows,
        right=2,
    )


def _verdict(result: Result | None) -> Cell:
    if result is None or not result.ran + len(result.problems):
        return Cell("no kernel", "dim")
    if result.problems:
        return Cell(f"{len(result.problems)} FAILED", "bold red")
    return Cell(f"ok {result.used:.0%}", "green")

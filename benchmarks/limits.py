"""How far is each pass of an op from its limit? The C++ kernels on one thread, by its CPU time.

    make limits ARGS="conv2d --shapes '8x64x56²*' '8x3x224²*'"
    make limits ARGS="conv2d --shapes '8x256x14² 3x3 -> 256' --algorithm winograd4"

The limit is the larger of two times at one core's measured peaks: that of the multiplications and
additions which the algorithm in use needs (`counted` names it), and that of the bytes which have to
be read and written. The copy rate is that of main memory: what stays in a cache can be faster.
Results lie where earlier ones did, as far as malloc can be told so; `faults` counts the pages that
the last call met for the first time, whose clearing is in its time.
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from lamina.bench import roofline
from lamina.bench.case import Case, cases_of, check_wishes, without_kernels
from lamina.bench.row import commit, installed
from lamina.bench.timing import interleave, median_and_spread
from lamina.cli import DTYPES, parse_dtype, parse_file, parse_op
from lamina.console import print_table, progress
from lamina.info import device_name
from lamina.modules import missing
from lamina.spec import specs
from passes import Pass, keep_memory, passes, timer
from work import TILES, work_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One pass on one shape.

    spread_ms: interquartile range of the time. share: limit over time. faults: pages of a call that
    the system had to map.
    """

    op: str
    shape: str
    dtype: str
    part: str
    counted: str
    bound: str
    ms: float
    spread_ms: float
    limit_ms: float
    share: float
    faults: int
    rounds: int
    device: str
    versions: str
    commit: str


def measure(case: Case, peaks: roofline.Peaks, algorithm: str | None, seconds: float) -> list[Row]:
    """The rows of one shape, whose passes are timed in turns."""
    torch.manual_seed(0)
    sample = case.workload.build(case.dtype, CPU)
    if algorithm:
        sample.kwargs["algorithm"] = algorithm
    found = passes(case.spec, sample)
    work = {name: work_of(one) for name, one in found.items()}
    timers = {name: timer(one.run, time.thread_time) for name, one in found.items()}
    times = interleave(timers, "forward", seconds)
    rows = []
    for name in found:
        taken, spread = median_and_spread(list(times[name].values()))
        arithmetic = work[name].flops / peaks.flops[case.dtype]
        limit = max(arithmetic, work[name].bytes / peaks.bandwidth)
        rows.append(
            Row(
                op=case.spec.name,
                shape=case.workload.name,
                dtype=str(case.dtype).removeprefix("torch."),
                part=name,
                counted=work[name].counted,
                bound="arithmetic" if limit == arithmetic else "memory",
                ms=taken * 1e3,
                spread_ms=spread * 1e3,
                limit_ms=limit * 1e3,
                share=limit / taken,
                faults=_faults(found[name]),
                rounds=len(times[name]),
                device=device_name(CPU),
                versions=installed(),
                commit=commit(),
            )
        )
    return rows


def _faults(one: Pass) -> int:
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    one.run()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def limits(args: argparse.Namespace) -> None:
    """Measure and print the table; the CSV is written again after every shape."""
    if missing["cpp"]:
        raise ValueError(missing["cpp"])
    chosen = [specs()[op] for op in dict.fromkeys(args.op or specs())]
    if args.algorithm and [spec.name for spec in chosen] != ["conv2d"]:
        raise ValueError("--algorithm is conv2d's: name that op and no other")
    check_wishes(chosen, CPU, args.shapes, None, None)
    cases = cases_of(chosen, CPU, [args.dtype], ["both"], args.shapes)
    notes = without_kernels(chosen, [args.dtype])
    if not cases:
        raise ValueError("\n".join(notes))
    torch.set_num_threads(1)
    keep_memory()
    peaks = roofline.measure(CPU, 1)
    rows: list[Row] = []
    with progress(len(cases)) as advance:
        for case in cases:
            advance(f"{case.spec.name} {case.workload.name}")
            rows += measure(case, peaks, args.algorithm, args.seconds)
            if args.csv:
                _write(rows, args.csv)
    _print(rows, f"one thread, {installed()}; peaks {', '.join(peaks.described())}")
    print("\n".join(notes), end="\n" if notes else "")


def _write(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _print(rows: Sequence[Row], title: str) -> None:
    table, shape = [], None
    for row in rows:
        this = f"{row.op} {row.shape}"
        cells = [this if this != shape else "", row.part, row.counted, row.bound]
        cells += [f"{row.ms:.3g} ± {row.spread_ms:.1g}", f"{row.limit_ms:.3g}"]
        table.append([*cells, f"{row.share:.0%}", f"{row.faults or ''}"])
        shape = this
    header = ["shape", "pass", "counted", "bound by", "ms", "limit ms", "of limit", "faults"]
    print_table(title, header, table, right=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("op", nargs="*", type=parse_op, help="all if none is named")
    parser.add_argument("--shapes", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--dtype", type=parse_dtype, default=DTYPES["float32"])
    parser.add_argument("--algorithm", choices=TILES, help="of conv2d; its own choice if left out")
    parser.add_argument("--seconds", type=float, default=3, help="for each shape (3)")
    parser.add_argument("--csv", type=parse_file, metavar="FILE")
    try:
        limits(parser.parse_args(arguments))
    except ValueError as error:
        print(f"limits: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

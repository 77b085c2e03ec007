"""Everything that needs a GPU, in steps: tests, sanitizer, tuning, benchmarks (`make gpu`).

    make gpu ARGS="--steps check gpu tests sanitize --seconds 540"
    make gpu ARGS="--steps tune bench --op linear dynamic_routing threshold --seconds 560"
    make gpu ARGS="--steps bench --op conv2d --seconds 560"

Each step is a process of its own with a time limit, and each writes its log, rows and plot into the
output folder as it goes: what is done stays, whatever happens to the rest. Exit code 1 if anything
failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GRACE = 30  # seconds beyond its budget that a benchmark may take to finish its last case
STEPS = ("check", "gpu", "tests", "sanitize", "tune", "bench")
# How the time is shared among the steps that are wanted.
SHARES = {"check": 1.0, "gpu": 1.5, "tests": 2.5, "sanitize": 2.0, "tune": 3.0, "bench": 6.0}


@dataclass(frozen=True)
class Suite:
    """One call of `lamina bench`; `weight` is its share of the time."""

    op: str
    dtypes: tuple[str, ...]
    weight: float = 1.0
    shapes: tuple[str, ...] = ("*",)

    @property
    def name(self) -> str:
        return f"{self.op}_{'_'.join(self.dtypes)}"


# Where nothing is said of an op, its suite is all shapes in float32, for a short time.
SUITES = {
    "threshold": (Suite("threshold", ("f32", "bf16"), 1.0),),
    "linear": (Suite("linear", ("bf16",), 3.0),),
    "conv2d": (Suite("conv2d", ("bf16",), 6.0),),
    "dynamic_routing": (Suite("dynamic_routing", ("f32",), 2.0),),
}


def suites() -> Iterator[Suite]:
    """Those of every op that there is."""
    from lamina.spec import specs

    for op in specs():
        yield from SUITES.get(op, (Suite(op, ("f32",), 0.3),))


@dataclass
class Run:
    """The steps, their folder, and when all of them must be done."""

    out: Path
    end: float
    dry: bool
    done: list[tuple[str, str, float]]

    def left(self) -> float:
        return self.end - time.monotonic()

    def step(self, name: str, limit: float, *command: str) -> None:
        """Run `python command...` for at most `limit` seconds; its output goes to <name>.txt."""
        print(f"== {name} (at most {limit:.0f} s): python {' '.join(command)}", flush=True)
        if self.dry:
            return
        begin = time.monotonic()
        log = self.out / f"{name}.txt"
        if limit < 1:
            outcome = "no time left"
            log.write_text(outcome)
        else:
            with log.open("w") as file:
                try:
                    done = subprocess.run(
                        [sys.executable, *command],
                        cwd=ROOT,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        timeout=limit,
                    )
                    outcome = "ok" if done.returncode == 0 else f"exit code {done.returncode}"
                except subprocess.TimeoutExpired:
                    outcome = "out of time"
        print("\n".join(log.read_text().splitlines()[-40:]), flush=True)
        self.done.append((name, outcome, time.monotonic() - begin))


def _bench(run: Run, suite: Suite, limit: float, device: str) -> None:
    files = {kind: run.out / f"{suite.name}.{kind}" for kind in ("json", "csv", "png")}
    run.step(
        f"bench_{suite.name}",
        limit,
        *("-m", "lamina", "bench", suite.op, "--device", device, "--dtype", *suite.dtypes),
        *("--shapes", *suite.shapes, "--budget", str(max(1, round(limit - GRACE)))),
        *("--json", str(files["json"]), "--csv", str(files["csv"])),
    )
    if files["json"].exists() and importlib.util.find_spec("matplotlib"):
        from lamina.bench.plot import plot_rows
        from lamina.bench.row import Row

        plot_rows([Row(**row) for row in json.loads(files["json"].read_text())], files["png"])


def _step(run: Run, step: str, limit: float, kernels: tuple[str, ...]) -> None:
    """Any step but the benchmarks."""
    pytest = ("-m", "pytest", "-q", "-rfEs", "--maxfail=30", "-p", "no:cacheprovider")
    chosen = " or ".join(kernels)
    commands = {
        "check": ("-m", "lamina", "check", "--quick", "--backend", *kernels),
        "gpu": (*pytest, "tests/test_gpu.py", "-k", f"({chosen}) and not sanitizer"),
        "tests": (*pytest, "tests", "-k", f"({chosen}) and not host and not offline", "-m not gpu"),
        "sanitize": (*pytest, "tests/test_gpu.py", "-k", "sanitizer"),
        "tune": (
            *("benchmarks/gpu_tune.py", "--seconds", str(max(1, round(limit - GRACE)))),
            *("--out", str(run.out / "tune")),
        ),
    }
    run.step(step, limit, *commands[step])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out/gpu")
    parser.add_argument("--seconds", type=float, default=540, help="for everything")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--op", nargs="+", help="benchmark these only")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(args.out, time.monotonic() + args.seconds, args.dry_run, [])
    run.step("info", min(60, run.left()), "-m", "lamina", "info", "--probe")
    kernels = ("cuda", "triton") if args.device == "cuda" else ("cpp",)
    wanted = [step for step in STEPS if step in args.steps]
    for i, step in enumerate(wanted):
        # A step that ends early leaves its time to the later ones.
        share = SHARES[step] / sum(SHARES[later] for later in wanted[i:])
        if step != "bench":
            _step(run, step, share * run.left(), kernels)
            continue
        chosen = [s for s in suites() if not args.op or s.op in args.op]
        for j, suite in enumerate(chosen):
            weight = suite.weight / sum(s.weight for s in chosen[j:])
            _bench(run, suite, weight * run.left(), args.device)
    for name, outcome, seconds in run.done:
        print(f"{name:30} {outcome:15} {seconds:6.1f} s")
    print(f"logs, rows and plots: {args.out}")
    return int(any(outcome != "ok" for _, outcome, _ in run.done))


if __name__ == "__main__":
    raise SystemExit(main())

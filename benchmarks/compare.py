"""Two versions of Lamina against each other: was a change a gain, and are the results the same?

    make compare ARGS="HEAD~1 linear --shapes '128x*' --mode forward"
    make compare ARGS="HEAD~3 dynamic_routing --after HEAD~1 --threads 1"
    make compare ARGS="HEAD~1 conv2d --shapes '8x64x56² 1x1*' --passes grad_weight --threads 1"

A version is a commit, which is built into build/compare once (minutes), or a folder that Lamina was
installed into (pip install --target). Each runs in a process of its own (version.py), on the same
inputs, in turns; the ratio is taken within a turn. On the CPU. --passes takes passes of the C++
kernels alone, as limits.py does: on one thread by its CPU time, on several by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = Path(__file__).with_name("version.py")
LEAST_ROUNDS = 5


def installed(version: str) -> Path:
    """The folder to import a version from: the folder that it names, or the built commit's."""
    if (Path(version) / "lamina").is_dir():
        return Path(version).resolve()
    git = ["git", "-C", str(ROOT)]
    command = [*git, "rev-parse", "--verify", "--quiet", "--short=12", f"{version}^{{commit}}"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise ValueError(f"{version!r} is neither a commit nor a folder with lamina in it")
    commit = found.stdout.strip()
    folder = ROOT / "build/compare" / commit
    if not folder.is_dir():
        print(f"building {version} ({commit}): some minutes", file=sys.stderr)
        with tempfile.TemporaryDirectory() as source:
            archive = subprocess.run([*git, "archive", commit], stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            pip += ["--no-build-isolation", "--target", str(folder), source]
            subprocess.run(pip, check=True)
    return folder


class Version:
    """A process that imports one version of Lamina and measures what it is told to."""

    def __init__(self, folder: Path | None, threads: int | None) -> None:
        command = [sys.executable, str(SERVER)]
        environment = dict(os.environ)
        if folder:
            # Without `site`, which would let an editable install come before the folder.
            command.insert(1, "-S")
            environment["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.threads = self.ask(threads=threads)["threads"]

    def ask(self, **question: object) -> dict:
        """One line of JSON there, one back."""
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise ValueError(f"a version stopped with exit code {self._process.wait()}: see above")
        found = json.loads(answer)
        if "refused" in found:
            raise ValueError(found["refused"])
        return found

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def versions(*folders: Path | None, threads: int | None) -> Iterator[list[Version]]:
    """The processes; they end with the block."""
    started: list[Version] = []
    try:
        for folder in folders:
            started.append(Version(folder, threads))
        yield started
    finally:
        for version in started:
            version.close()


def _rounds(pair: list[Version], seconds: float) -> list[list[float]]:
    """Seconds a call, of both, in each turn."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < LEAST_ROUNDS or time.perf_counter() < end:
        order = random.sample((0, 1), 2)
        taken = {i: pair[i].ask()["seconds"] for i in order}
        rounds.append([taken[0], taken[1]])
    return rounds


def compare(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    from lamina.bench.timing import median_and_spread
    from lamina.console import print_table, progress

    if args.passes and args.backend:
        raise ValueError("--passes are those of the C++ kernels: leave out --backend")
    dtype = str(args.dtype).removeprefix("torch.")
    folders = installed(args.before), installed(args.after) if args.after else None
    with versions(*folders, threads=args.threads) as pair:
        shapes = pair[1].ask(op=args.op, patterns=args.shapes)["shapes"]
        cases = [(shape, mode) for shape in shapes for mode in args.passes or args.mode]
        if not cases:
            raise ValueError(f"no shape of {args.op} matches {' '.join(args.shapes)}")
        rows = []
        with progress(len(cases)) as advance:
            for shape, mode in cases:
                advance(f"{shape} {mode}")
                case = {"op": args.op, "shape": shape, "mode": mode}
                case |= {"dtype": dtype, "backend": args.backend, "alone": bool(args.passes)}
                same = len({version.ask(**case)["bits"] for version in pair}) == 1
                rounds = _rounds(pair, args.seconds)
                before, after = (median_and_spread(list(own))[0] for own in zip(*rounds))
                ratio, spread = median_and_spread([b / a for b, a in rounds])
                rows.append(
                    [
                        *(shape, mode, f"{before * 1e3:.4g}", f"{after * 1e3:.4g}"),
                        *(f"{ratio:.3f} ± {spread:.3f}", "the same" if same else "other bits"),
                    ]
                )
        header = ["shape", "mode", "before ms", "after ms", "before / after", "results"]
        title = f"{args.op} {dtype}, {pair[0].threads} threads: "
        title += f"{args.before} -> {args.after or 'what is installed'}"
        print_table(title, header, rows, right=2)


def main() -> int:
    from lamina.cli import DTYPES, parse_dtype, parse_modes, parse_op, parse_threads

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", metavar="VERSION", help="a commit, or a folder")
    parser.add_argument("op", type=parse_op)
    parser.add_argument("--after", metavar="VERSION", help="what is installed, if left out")
    parser.add_argument("--shapes", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--mode", type=parse_modes, default=["forward", "both"])
    parser.add_argument("--passes", nargs="+", metavar="PASS", help="instead, as grad_weight")
    parser.add_argument("--dtype", type=parse_dtype, default=DTYPES["float32"])
    parser.add_argument("--backend", help="Lamina's own choice, if left out")
    parser.add_argument("--threads", type=parse_threads)
    parser.add_argument("--seconds", type=float, default=5, help="for each shape and mode (5)")
    try:
        compare(parser.parse_args())
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

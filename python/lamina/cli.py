"""The command line: lamina info | check | bench | demo."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lamina import backends
from lamina.info import cores
from lamina.spec import FLOATS, specs

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
DTYPES |= {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def parse_dtype(text: str) -> torch.dtype:
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(DTYPES)}")
    return DTYPES[text]


def parse_op(text: str) -> str:
    if text not in specs():
        raise argparse.ArgumentTypeError(f"{text!r} is none of the ops: {', '.join(specs())}")
    return text


def parse_modes(text: str) -> list[str]:
    modes = text.split(",")
    for mode in modes:
        if mode not in ("forward", "backward", "both"):
            raise argparse.ArgumentTypeError(f"{mode!r} is none of forward, backward, both")
    return modes


def _device(text: str) -> torch.device:
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("no GPU is here, or torch is built without CUDA")
    return torch.device(text)


def parse_threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads")
    if int(text) > cores():
        raise argparse.ArgumentTypeError(f"{text} threads on the {cores()} cores of this process")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _folder(text: str) -> Path:
    """A folder to write into: found out now, not when the results are there."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"can't write into {text!r}: {error}") from None
    if not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"can't write into {text!r}")
    return path


def parse_file(text: str) -> Path:
    path = Path(text)
    _folder(str(path.parent))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path


def _picture(text: str) -> Path:
    if not text.endswith((".png", ".svg", ".pdf")):
        raise argparse.ArgumentTypeError(f"{text!r} is none of .png, .svg, .pdf")
    return parse_file(text)


def _info(args: argparse.Namespace) -> int:
    from lamina.info import info

    info(probe=args.probe)
    return 0


def _check(args: argparse.Namespace) -> int:
    from lamina.check import check

    right = check(
        args.op,
        args.backend,
        args.dtype,
        interpret=args.interpret,
        second=not args.quick,
    )
    return 0 if right else 1


def _bench(args: argparse.Namespace) -> int:
    from lamina.bench.suite import bench

    if args.plot and not importlib.util.find_spec("matplotlib"):
        print("--plot needs matplotlib: pip install 'lamina[cli]'", file=sys.stderr)
        return 2
    try:
        rows = bench(
            args.op,
            device=args.device,
            dtypes=args.dtype,
            modes=args.mode,
            peers=args.peers,
            kernels=args.backend,
            shapes=args.shapes,
            threads=args.threads,
            tf32=args.tf32,
            budget=args.budget,
            json=args.json,
            csv=args.csv,
            plot=args.plot,
        )
    except ValueError as error:
        print(f"lamina bench: {error}", file=sys.stderr)
        return 2
    return 0 if all(row.correct for row in rows if row.backend) else 1


def _demo(args: argparse.Namespace) -> int:
    from lamina.demo import demo

    try:
        return 0 if demo(args.quick, args.out, args.device) else 1
    except (RuntimeError, ValueError) as error:
        print(f"lamina demo: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lamina", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="info | check | bench | demo")

    info = commands.add_parser("info", help="what was built, what runs here, what is missing")
    info.add_argument("--probe", action="store_true", help="measure the peaks of this machine")
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="compare every kernel with its reference in float64")
    check.add_argument("op", nargs="*", type=parse_op, help="ops to check; all if none is named")
    check.add_argument("--backend", nargs="+", choices=backends.NAMES)
    check.add_argument("--dtype", nargs="+", type=parse_dtype, metavar="DTYPE")
    check.add_argument(
        "--interpret", action="store_true", help="run Triton kernels in its interpreter, slowly"
    )
    check.add_argument("--quick", action="store_true", help="leave out gradgradcheck")
    check.set_defaults(run=_check)

    bench = commands.add_parser("bench", help="time every op against all its peers")
    bench.add_argument("op", nargs="*", type=parse_op, help="ops to time; all if none is named")
    bench.add_argument("--device", type=_device, help="cpu or cuda; the GPU if there is one")
    bench.add_argument(
        "--dtype", nargs="+", type=parse_dtype, metavar="DTYPE", default=[torch.float32]
    )
    bench.add_argument(
        "--mode",
        type=parse_modes,
        default=["forward", "both"],
        help="forward, backward, both (forward and backward), with commas; default forward,both",
    )
    bench.add_argument("--peers", nargs="+", metavar="PATTERN", help="only these, as eager*")
    bench.add_argument(
        "--backend",
        nargs="*",
        choices=backends.NAMES[1:],
        help="Lamina's backends to show beside its own choice; all that run here",
    )
    bench.add_argument(
        "--shapes",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="some of the list, as 128x*, or your own in the same form, as 24x2048x2048",
    )
    bench.add_argument("--threads", type=parse_threads, help="torch's present number if left out")
    bench.add_argument("--tf32", action="store_true", help="allow TF32, for all alike")
    bench.add_argument(
        "--budget", type=_seconds, default=600, metavar="SECONDS", help="for everything (600)"
    )
    bench.add_argument("--json", type=parse_file, metavar="FILE")
    bench.add_argument("--csv", type=parse_file, metavar="FILE")
    bench.add_argument("--plot", type=_picture, metavar="FILE", help="a picture: .png, .svg, .pdf")
    bench.set_defaults(run=_bench)

    demo = commands.add_parser("demo", help="train on handwritten digits, beside torch's layers")
    demo.add_argument("--quick", action="store_true", help="fewer epochs")
    demo.add_argument("--out", type=_folder, default="out", help="folder of the plot")
    demo.add_argument("--device", type=_device, help="cpu or cuda; the GPU if there is one")
    demo.set_defaults(run=_demo)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        code = args.run(args)
        sys.stdout.flush()  # What nobody reads any more, as behind `| head`, is noticed here.
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

"""The command line: lamina info | check | bench | demo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from lamina import backends
from lamina.spec import FLOATS, specs

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
DTYPES |= {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def _dtype(text: str) -> torch.dtype:
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(DTYPES)}")
    return DTYPES[text]


def _op(text: str) -> str:
    if text not in specs():
        raise argparse.ArgumentTypeError(f"{text!r} is none of the ops: {', '.join(specs())}")
    return text


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lamina", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="info | check | bench | demo")

    info = commands.add_parser("info", help="what was built, what runs here, what is missing")
    info.add_argument("--probe", action="store_true", help="measure the peaks of this machine")
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="compare every kernel with its reference in float64")
    check.add_argument("op", nargs="*", type=_op, help="ops to check; all if none is named")
    check.add_argument("--backend", nargs="+", choices=backends.NAMES)
    check.add_argument("--dtype", nargs="+", type=_dtype, metavar="DTYPE")
    check.add_argument(
        "--interpret", action="store_true", help="run Triton kernels in its interpreter, slowly"
    )
    check.add_argument("--quick", action="store_true", help="leave out gradgradcheck")
    check.set_defaults(run=_check)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(arguments)
    return args.run(args)

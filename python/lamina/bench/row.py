"""A measured row, and what identifies the machine and the code that it was measured on."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import torch

import lamina
from lamina.info import versions
from lamina.modules import _C

LAMINA = "lamina"  # its name among the providers


@dataclass(frozen=True)
class Row:
    """One provider on one shape in one mode.

    ratio_vs_lamina: the provider's time over Lamina's, median over rounds; above 1 Lamina is
        faster. None where either result is wrong: a wrong result has no speed.
    spread: interquartile range of that ratio over the rounds; for Lamina itself, of its time over
        the median.
    roofline: the least time the machine's measured peaks allow, over the time taken.
    peak_bytes: allocated at the worst moment beside inputs and results. saved_bytes: kept for the
        backward pass beside inputs and parameters. None where not measured.
    backend: which of Lamina's backends ran; empty for a peer. counted: False for a peer that is
        only shown. timing: "clock", "graph" or "events". note: why something is None.
    """

    op: str
    shape: str
    dtype: str
    mode: str
    provider: str
    backend: str
    median_ms: float
    ratio_vs_lamina: float | None
    spread: float
    correct: bool
    counted: bool
    roofline: float | None
    peak_bytes: int | None
    saved_bytes: int | None
    rounds: int
    timing: str
    note: str
    device: str
    threads: int
    versions: str
    commit: str

    @property
    def group(self) -> tuple[str, str, str]:
        """Rows of one group make one table."""
        return self.op, self.dtype, self.mode


def installed() -> str:
    """Versions and instruction sets (Lamina's and ATen's) that a timing depends on, as one text."""
    wanted = ("lamina", "torch", "triton", "python", "cuda")
    found = {name: versions()[name] for name in wanted if versions()[name]}
    if _C is not None:
        found |= {"isa": _C.isa(), "aten": torch.backends.cpu.get_cpu_capability().lower()}
    return " ".join(f"{name}={value}" for name, value in found.items())


@cache
def commit() -> str:
    """The commit of the working tree that Lamina runs from; empty if it runs from a wheel."""
    folder = Path(lamina.__file__).parent
    if not (folder.parents[1] / "csrc/library.cpp").exists():
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_json(rows: Sequence[Row], path: Path) -> None:
    """All rows as a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows, with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_csv(path: Path) -> list[Row]:
    """The rows that `write_csv` wrote."""
    with path.open(newline="") as file:
        return [
            Row(**{field.name: _parsed(field.type, line[field.name]) for field in fields(Row)})
            for line in csv.DictReader(file)
        ]


def _parsed(kind: str, text: str) -> object:
    if kind.endswith(" | None") and not text:
        return None
    parse = {"str": str, "int": int, "float": float, "bool": "True".__eq__}
    return parse[kind.removesuffix(" | None")](text)

"""benchmarks/compare.py: two versions side by side, each with its own files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lamina
from lamina import modules

ROOT = Path(__file__).resolve().parents[1]
COMPARE = ROOT / "benchmarks/compare.py"


@pytest.fixture
def other(tmp_path):
    """A copy of Lamina in a folder, as `pip install --target` leaves it."""
    if not COMPARE.is_file():
        pytest.skip("benchmarks/ is not part of a source distribution")
    copy = tmp_path / "lamina"
    shutil.copytree(Path(lamina.__file__).parent, copy)
    for name in ("_ops", "_C"):
        if library := modules.library(name):
            shutil.copy(library, copy)
    return tmp_path


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, COMPARE, *map(str, arguments), "--seconds", "0.01"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def compared(other: Path, *what: str) -> str:
    """The line of a shape that one process measures in no time."""
    done = run(other, "linear", "--shapes", "8x64x64", *what, "--threads", "1")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "8x64x64" in line)
    return line


def test_the_same_version(other):
    assert "the same" in compared(other, "--mode", "both")


def test_another_version(other):
    file = other / "lamina/layers/linear.py"
    text = file.read_text()
    assert "output = F.linear(input, weight, bias)" in text
    file.write_text(text.replace("F.linear(input, weight, bias)", "F.linear(input, weight)"))
    assert "other bits" in compared(other, "--mode", "both")


@pytest.mark.skipif(bool(modules.missing["cpp"]), reason="the C++ module is not built")
def test_a_pass_alone(other):
    assert "the same" in compared(other, "--passes", "grad_weight")
    file = other / "lamina/layers/linear.py"
    text = file.read_text()
    assert "bias, activation, parameter, True" in text
    file.write_text(
        text.replace("bias, activation, parameter, True", "None, activation, 0.0, True")
    )
    assert "other bits" in compared(other, "--passes", "forward")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-such-commit", "linear"), "neither a commit nor a folder"),
        ((".", "linear"), "neither a commit nor a folder"),
        (("HEAD", "lienar"), "none of the ops"),
        (("HEAD", "linear", "--passes", "forward", "--backend", "cpp"), "leave out --backend"),
    ],
)
def test_what_it_does_not_take(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr

"""benchmarks/limits.py: every pass of every op, its work counted by hand, and clear refusals."""

from __future__ import annotations

import csv
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lamina.modules import missing
from lamina.spec import specs

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.skipif(bool(missing["cpp"]), reason="the C++ module is not built"),
    pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks/ is not here"),
]


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "limits.py", *map(str, arguments), "--seconds", "0.01"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def work(monkeypatch):
    """work(op, shape, algorithm) -> the work of each pass."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from passes import passes
    from work import work_of

    def found(op, shape, **options):
        (workload,) = specs()[op].workloads_like(shape, CPU)
        sample = workload.build(torch.float32, CPU)
        sample.kwargs.update(options)
        return {name: work_of(one) for name, one in passes(specs()[op], sample).items()}

    return found


def test_table_and_file(tmp_path):
    file = tmp_path / "rows.csv"
    done = run("linear", "threshold", "--shapes", "8x64x64", "1M in place", "--csv", file)
    assert done.returncode == 0, done.stderr
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    parts = ["forward", "backward", "grad_input", "grad_weight", "grad_bias"]
    assert [row["part"] for row in rows] == [*parts, *parts[:2]]
    for row in rows:
        share = float(row["limit_ms"]) / float(row["ms"])
        assert share > 0
        assert float(row["share"]) == pytest.approx(share)
        assert row["part"] in done.stdout
    assert done.stdout.count("8x64x64") == 1


def test_work_of_a_product(work):
    m, n, k = 5, 7, 11
    found = work("linear", f"{m}x{n}x{k}")
    mask = m  # bytes: seven bits a row
    assert found["forward"] == (2 * m * n * k, "products", 4 * (m * k + n * k + n + m * n) + mask)
    assert found["backward"].flops == 4 * m * n * k
    given = 4 * m * n + mask
    assert found["grad_input"] == (2 * m * n * k, "products", given + 4 * (n * k + m * k))
    assert found["grad_weight"] == (2 * m * n * k, "products", given + 4 * (m * k + n * k))
    assert found["grad_bias"] == (0, "", given + 4 * n)


@pytest.mark.parametrize(
    ("algorithm", "elements", "tiles"), [("im2col", 9, 49), ("auto", 16, 16), ("winograd4", 36, 4)]
)
def test_work_of_a_convolution(work, algorithm, elements, tiles):
    """A 7x7 image has 16 tiles of 2x2 pixels and 4 of 4x4; the gradient of filters has the former.

    With 16 channels on both sides, auto is winograd.
    """
    found = work("conv2d", "2x16x7² 3x3 -> 32", algorithm=algorithm)
    of_tiles = 2 * 2 * 16 * 32 * elements * tiles
    of_filters = of_tiles if algorithm == "im2col" else 2 * 2 * 16 * 32 * 16 * 16
    name = "winograd" if algorithm == "auto" else algorithm
    assert found["forward"][:2] == (of_tiles, name)
    assert found["grad_input"][:2] == (of_tiles, name)
    expected = of_filters, "im2col" if algorithm == "im2col" else "winograd"
    assert found["grad_weight"][:2] == expected
    assert found["backward"][:2] == (of_tiles + of_filters, name)


def test_work_of_routing(work):
    """What the performance page counts in D = 8: 8, 10, 10; 11, 11, 13 + 8 multiply-adds a vote,
    and where teams form the votes once 9, 2, 2; 8 + 3, 3, 13 + 8."""
    votes = 16 * 5 * 3 * 4
    found = work("dynamic_routing", "16x5x3x8x4")
    assert found["forward"][:2] == (2 * votes * 28, "votes anew")
    assert found["backward"][:2] == (2 * votes * 43, "votes anew")
    assert found["grad_u"].flops == found["grad_weight"].flops == 2 * votes * 35
    votes, found = 16 * 32 * 3 * 4, work("dynamic_routing", "16x32x3x8x4")
    assert found["forward"][:2] == (2 * votes * 13, "votes once")
    assert found["backward"][:2] == (2 * votes * 35, "votes once")
    assert work("dynamic_routing", "1x20x3x8x4")["forward"][:2] == (2 * 240 * 13, "votes once")


def test_bytes_of_what_is_overwritten(work):
    elements = 1 << 20
    assert work("threshold", "1M in place")["forward"].bytes == 8 * elements + elements // 8
    assert work("threshold", "1M")["forward"].bytes == 8 * elements + elements // 8


@pytest.mark.parametrize("op", specs())
def test_every_op_has_passes(work, op):
    found = work(op, min(specs()[op].workloads, key=lambda w: w.elements).name)
    assert {"forward", "backward"} <= set(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lienar",), "none of the ops"),
        (("linear", "--shapes", "7G"), "no shape matches 7G"),
        (("squash", "--dtype", "bf16"), "squash has no kernels in bfloat16"),
        (("linear", "--algorithm", "winograd"), "--algorithm is conv2d's"),
        (("conv2d", "--algorithm", "fft"), "invalid choice: 'fft'"),
        (("linear", "--csv", "."), "is a folder"),
    ],
)
def test_what_it_does_not_take(arguments, said, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    from limits import main

    with suppress(SystemExit):  # argparse's
        assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_an_algorithm_that_does_not_fit():
    done = run("conv2d", "--shapes", "1x8x8² 1x1 -> 8", "--algorithm", "winograd")
    assert done.returncode == 2
    assert "needs a 3x3 kernel" in done.stderr
    assert "Traceback" not in done.stderr

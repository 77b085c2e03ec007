"""What the README shows is what was stored and what runs."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


@pytest.fixture
def figures(monkeypatch):
    if not (ROOT / "benchmarks/results").is_dir():
        pytest.skip("the stored results are not part of a source distribution")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("figures")
    del sys.modules["figures"]


def test_the_table_is_that_of_the_stored_results(figures):
    text = README.read_text()
    assert figures.readme(text, figures.stored()) == text, "run `make figures`"


def test_every_line_of_the_table_has_figures(figures):
    for rows in figures.stored().values():
        for line in figures.LINES:
            assert line.ratios(rows, "forward"), line


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(example, {})
    assert "linear" in capsys.readouterr().out

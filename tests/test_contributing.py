"""CONTRIBUTING.md's first step, followed: a copy of the template is an op of the house."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lamina.cases
import lamina.layers
from lamina.spec import specs


@pytest.fixture
def copied_template(tmp_path, monkeypatch):
    for package in (lamina.layers, lamina.cases):
        template = Path(package.__file__).with_name("_template.py").read_text()
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "hard_gate.py").write_text(
            template.replace("swish", "hard_gate").replace("Swish", "HardGate")
        )
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    specs.cache_clear()
    yield
    specs.cache_clear()


def test_a_copy_of_the_template_is_found_and_runs(copied_template):
    spec = specs()["hard_gate"]
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(spec.functional, x)
    samples = list(spec.samples(torch.float32, torch.device("cpu")))
    assert "empty" in [sample.name for sample in samples]
    with pytest.raises(ValueError, match="hard_gate has no cpp kernel"):
        spec.functional(x, backend="cpp")

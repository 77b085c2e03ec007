"""CONTRIBUTING.md's first step, followed: a copy of the template is an op of the house."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lamina.layers
from lamina.spec import specs


@pytest.fixture
def copied_template(tmp_path, monkeypatch):
    template = Path(lamina.layers.__file__).with_name("_template.py").read_text()
    (tmp_path / "hard_gate.py").write_text(
        template.replace("swish", "hard_gate").replace("Swish", "HardGate")
    )
    monkeypatch.setattr(lamina.layers, "__path__", [*lamina.layers.__path__, str(tmp_path)])
    specs.cache_clear()
    yield
    specs.cache_clear()


def test_a_copy_of_the_template_is_found_and_runs(copied_template):
    spec = specs()["hard_gate"]
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(spec.functional, x)
    with pytest.raises(ValueError, match="hard_gate has no cpp kernel"):
        spec.functional(x, backend="cpp")

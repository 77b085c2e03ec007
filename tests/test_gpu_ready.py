"""What can be tried without a GPU of what is run on one: its test calls, its script, its shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lamina
from gpu_samples import calls_of, large_calls
from lamina.spec import specs

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.mark.parametrize("call", large_calls, ids=lambda call: call.__name__)
def test_large_calls(call):
    with lamina.use_backend("reference"):
        call(CPU, 1 << 12)


@pytest.mark.parametrize("op", specs())
def test_calls(op):
    with lamina.use_backend("reference"):
        calls = list(calls_of(op, torch.float32, CPU))
        assert calls
        for tensor in calls[0].tensors:
            tensor.data.copy_(torch.randn_like(tensor))
        for got, again in zip(calls[0].run(), calls[0].run(), strict=True):
            torch.testing.assert_close(got, again, rtol=0, atol=0)


def test_script(tmp_path):
    """Every step and every op's benchmark is there, and none has more time than there is."""
    script = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run([*script, "--seconds", "500"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    limits = [float(line.split("at most ")[1].split()[0]) for line in done.stdout.split("== ")[1:]]
    assert max(limits) <= 500
    for name in ("check", "gpu", "tests", "sanitize", "tune", *(f"bench_{op}" for op in specs())):
        assert f"== {name}" in done.stdout
    few = [*script, "--steps", "bench", "--op", "linear"]
    done = subprocess.run(few, capture_output=True, text=True)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("==")] == [
        "info",
        "bench_linear_bf16",
    ]


def test_shapes_for_a_gpu():
    for op in ("linear", "conv2d", "dynamic_routing", "threshold"):
        spec = specs()[op]
        large = spec.workloads_on(torch.device("cuda"))
        assert spec.workloads_on(CPU) == spec.workloads
        assert max(w.flops for w in large) > max(w.flops for w in spec.workloads)

"""What is special to the Triton kernels: two ways of loading, compiler beside interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton_compile
from lamina.triton_kernels import gemm, gemm_config, interpreted, launch, linear, threshold


@pytest.fixture
def interpreter():
    with interpreted():
        yield


@pytest.mark.parametrize("weight_order", ["out_in", "in_out"])
@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_linear_loads(interpreter, monkeypatch, described, weight_order, activation):
    """Descriptors and pointers give the same; rows are whole multiples of 16 bytes."""
    monkeypatch.setattr(gemm, "describable", gemm.describable if described else lambda m: False)
    x, grad = torch.randn(37, 24), torch.randn(37, 40)
    weight, bias = torch.randn(40, 24), torch.randn(40)
    if weight_order == "in_out":
        weight = weight.t().contiguous().t()
    with launch.recording() as launches:
        linear.linear_forward(x, weight, bias, activation, 0.0, True)
    assert launches[0].options["A_DESCRIPTOR"] is described
    assert launches[0].options["B_TRANSPOSED"] is (described and weight_order == "out_in")

    output, saved = linear.linear_forward(x, weight, bias, activation, 0.0, True)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact = torch.nn.functional.linear(*leaves)
    exact = exact if activation == "none" else getattr(torch.nn.functional, activation)(exact)
    torch.testing.assert_close(output.double(), exact.detach(), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(exact, leaves, grad.double())
    for needs in (
        (True, True, True),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ):
        found = linear.linear_backward(grad, x, weight, saved, activation, 0.0, needs)
        for needed, got, wanted in zip(needs, found, gradients, strict=True):
            assert (got is not None) == needed
            if needed:
                torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)
    assert linear.linear_backward(grad, x, weight, saved, activation, 0.0, (False, True, False))[
        1
    ].stride() == (weight.stride())


def test_split_sums(interpreter, monkeypatch):
    """A long K is cut into parts, whose sums are added in order."""
    monkeypatch.setattr(gemm, "splits_of", lambda *_: 3)
    a, b = torch.randn(20, 150), torch.randn(150, 33)
    c = torch.full((20, 33), float("nan"))
    gemm.gemm(a, b, c, split=True)
    torch.testing.assert_close(c, a @ b, rtol=1e-5, atol=1e-5)


def test_long_strides(interpreter):
    """Offsets are 64 bits wide: a column whose elements lie 2^33 bytes apart."""
    storage = torch.empty(3 << 31, dtype=torch.bfloat16, device="meta")
    assert gemm.describable(storage.as_strided((3, 8), (1 << 31, 1)))
    sizes, strides = threshold.collapsed(
        storage.as_strided((3, 5), (1 << 31, 2)), torch.empty(3, 5, device="meta")
    )
    assert (sizes, strides) == ((5, 3), (2, 1 << 31))


def test_recorded_launch_compiles_after_interpreting():
    x = torch.randn(100)
    with interpreted():
        output, _ = threshold.threshold_forward(x, 0.5, True)
    torch.testing.assert_close(output, torch.where(x <= 0.5, 0.0, x))
    built = triton_compile.build("threshold", "sm_90", False, 0)
    assert built.error == ""
    assert 0 < built.registers < 256


def test_without_interpreter():
    if triton_compile.triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        threshold.threshold_forward(torch.randn(3), 0.0, False)
    assert threshold.unsupported(torch.randn(3))
    assert "torch.int32" in threshold.unsupported(torch.ones(3, dtype=torch.int32))[-1]


@pytest.mark.parametrize("processors", [1, 132])
def test_every_shape_has_a_configuration(processors):
    for backend, capability in (("cuda", 80), ("cuda", 90), ("hip", 0), ("interpreter", 0)):
        target = launch.Target(backend, capability, processors)
        for dtype in linear.DTYPES:
            for m, n in ((1, 1), (16, 5000), (100_000, 3), (8192, 8192)):
                for described in (True, False):
                    config = gemm_config.choose(target, dtype, "ieee", m, n, described=described)
                    assert config in gemm_config.candidates(target, dtype, "ieee")
                    assert gemm_config.splits_of(target, config, m, n, 1 << 20) >= 1

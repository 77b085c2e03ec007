"""squash: its formulas, lengths and limits."""

from __future__ import annotations

import math

import pytest
import torch

import lamina
from lamina.functional import squash
from lamina.layers.squash import KINDS

# The length of the result for a vector of length n.
LENGTHS = {
    "exact": lambda n, eps: n**2 / (1 + n**2),
    "sqrt_eps": lambda n, eps: n**2 / (1 + n**2) * n / math.sqrt(n**2 + eps),
    "norm_eps": lambda n, eps: n**2 / (1 + n**2) * n / (n + eps),
    "exp": lambda n, eps: (1 - math.exp(-n)) * n / (n + eps),
}


@pytest.mark.parametrize("kind", KINDS)
def test_length_and_direction(kind, backend):
    _, device = backend
    eps = 0.0 if kind == "exact" else 1e-2
    direction = torch.nn.functional.normalize(torch.randn(16, dtype=torch.float64), dim=0)
    for n in (1e-3, 0.5, 1.0, 7.0, 300.0):
        v = squash((n * direction).to(device), kind, eps).cpu()
        torch.testing.assert_close(v, LENGTHS[kind](n, eps) * direction, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_vectors(kind, backend):
    """Value and gradient are finite at 0: 0, but for "exp" without eps, which is s near 0."""
    _, device = backend
    s = torch.zeros(3, 8, dtype=torch.float64, device=device, requires_grad=True)
    grad = torch.randn(3, 8, dtype=torch.float64, device=device)
    for eps in (0.0, 1e-3):
        v = squash(s, kind, eps)
        (found,) = torch.autograd.grad(v, s, grad)
        assert (v == 0).all()
        wanted = grad if kind == "exp" and eps == 0 else torch.zeros_like(grad)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_and_huge_vectors_stay_finite(dtype, backend):
    """Where |s|^2 underflows or nearly overflows nothing becomes NaN."""
    _, device = backend
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max ** 0.5 / 8
    for size in (tiny, tiny**0.5, huge):
        s = torch.full((2, 4), size, dtype=dtype, device=device, requires_grad=True)
        v = squash(s)
        (grad,) = torch.autograd.grad(v.sum(), s)
        assert v.isfinite().all()
        assert grad.isfinite().all()
        assert (v.norm(dim=-1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1, 300])
def test_16_bit_vectors_are_computed_with_in_float32(dtype, size):
    """Whose squares would overflow, underflow or lose most of their digits."""
    s = torch.randn(50, 8).mul_(size).to(dtype).requires_grad_()
    wide = s.detach().float().requires_grad_()
    v, exact = squash(s), squash(wide)
    assert torch.equal(v, exact.to(dtype))
    grad = torch.randn_like(v)
    (got,) = torch.autograd.grad(v, s, grad)
    (expected,) = torch.autograd.grad(exact, wide, grad.float())
    torch.testing.assert_close(got, expected.to(dtype))


def test_layouts_agree(backend):
    """A view gives what its contiguous copy gives."""
    _, device = backend
    base = torch.randn(6, 10, 16, dtype=torch.float64, device=device)
    for view in (base.permute(2, 1, 0), base[::2, 1::3, ::2], base[:1].expand(4, 10, 16)):
        torch.testing.assert_close(squash(view), squash(view.contiguous()), rtol=0, atol=1e-15)


def test_bad_construction():
    with pytest.raises(ValueError, match="Squash: kind is 'l2'; it must be one of exact"):
        lamina.Squash("l2")
    with pytest.raises(ValueError, match="Squash: eps must not be negative, got nan"):
        lamina.Squash("exp", math.nan)


def test_module_is_the_function():
    layer = lamina.Squash("norm_eps", 1e-3)
    s = torch.randn(5, 8)
    torch.testing.assert_close(layer(s), squash(s, "norm_eps", 1e-3), rtol=0, atol=0)
    assert repr(layer) == "Squash(kind='norm_eps', eps=0.001)"
    assert not layer.state_dict()

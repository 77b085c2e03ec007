"""Dynamic routing in Triton against the reference and its autograd, in float64."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from bounds import interpreted
from lamina.layers import dynamic_routing as definition
from lamina.layers import routing_pass as pass_definition
from lamina.triton_kernels import dynamic_routing, routing, routing_pass


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def gradients(output, leaves, grad):
    found = torch.autograd.grad(output, leaves, grad, allow_unused=True)
    return [
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
    ]


def detached(*tensors):
    return [None if t is None else t.detach() for t in tensors]


CASES = {
    "plain": {},
    "one iteration": {"iterations": 1},
    "two": {"iterations": 2, "bias": True},
    "detached": {"detach": True, "bias": True, "prior": "shared"},
    "detached, bare": {"detach": True},
    "detached, bias": {"detach": True, "bias": True},
    "detached, prior": {"detach": True, "prior": "batched"},
    "leaky": {"leaky": True, "prior": "batched", "squash": "sqrt_eps"},
    "replaced": {"accumulate": False, "bias": True, "squash": "norm_eps"},
    "masked": {"mask": "batched", "squash": "exp", "scale": 0.5},
    "shared weight": {"shared": True, "mask": "shared", "prior": "shared"},
    "more than a tile": {"samples": 19},
    "no samples": {"samples": 0},
    "no in-capsules": {"ins": 0, "bias": True},
}


@pytest.fixture(params=["out", "out in tiles", "in", "in in tiles"])
def over(request, monkeypatch):
    """The coupling dimension; in tiles of two out-capsules the third one has a tile of its own."""
    dim, *tiles = request.param.split(maxsplit=1)
    if tiles:
        monkeypatch.setattr(routing, "TILE_BYTES", 16 * 2 * 8 * 8)
    tiling = routing.tiling_of(3, 3, 8, 16, 8, dim == "in")
    assert tiling.tiles == (2 if tiles else 1)
    assert tiling.whole == (request.param == "out")
    return dim


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_the_reference(case, over):
    b, i, o, d, e = case.get("samples", 3), case.get("ins", 5), 3, 4, 6
    u = drawn(b, i, d)
    weight = drawn(o, e, d) if case.get("shared") else drawn(i, d, o, e).permute(2, 0, 3, 1)
    weight = weight.detach().requires_grad_()
    bias = drawn(o, e) if case.get("bias") else None
    prior = {"shared": lambda: drawn(i, o), "batched": lambda: drawn(b, i, o)}.get(
        case.get("prior"), lambda: None
    )()
    mask = {"shared": lambda: torch.rand(i), "batched": lambda: torch.rand(b, i)}.get(
        case.get("mask"), lambda: None
    )()
    mask = None if mask is None else mask.double()
    iterations, detach = case.get("iterations", 3), case.get("detach", False)
    options = (
        case.get("leaky", False),
        case.get("accumulate", True),
        case.get("scale", 1.0),
        case.get("squash", "exact"),
        0.0 if case.get("squash", "exact") == "exact" else 1e-3,
    )
    tensors = (u, weight, bias, prior)
    wanted = definition.Options(iterations, over, detach, *options)
    exact, exact_couplings = definition.route(*tensors, mask, wanted)
    grad = torch.randn_like(exact)
    leaves = [t for t in tensors if t is not None]
    wanted = gradients(exact, leaves, grad)
    with interpreted():
        v, s, couplings = dynamic_routing.dynamic_routing_forward(
            *detached(*tensors), mask, iterations, over, *options, True, True
        )
        needs = (True, True, bias is not None, prior is not None)
        found = dynamic_routing.dynamic_routing_backward(
            grad, *detached(*tensors), mask, s, over, detach, *options, needs
        )
    torch.testing.assert_close(v, exact.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(couplings, exact_couplings, rtol=0, atol=1e-12)
    for got, gradient in zip([g for g in found if g is not None], wanted, strict=True):
        torch.testing.assert_close(got, gradient, rtol=0, atol=1e-12)
    if weight.dim() == 4:
        assert found[1].stride() == weight.stride()


@pytest.mark.parametrize("first", [True, False])
def test_routing_pass(first, over):
    u, weight, prior = drawn(4, 5, 3), drawn(3, 5, 6, 3), drawn(5, 3)
    v = None if first else drawn(4, 3, 6)
    exact = pass_definition.step(u, weight, v, prior, None, over, True, 0.7)
    grad = torch.randn_like(exact)
    leaves = [t for t in (u, weight, v, prior) if t is not None]
    wanted = gradients(exact, leaves, grad)
    plain = detached(u, weight, v, prior)
    with interpreted():
        s = routing_pass.routing_pass_forward(*plain, None, over, True, 0.7)
        found = routing_pass.routing_pass_backward(
            grad, *plain, None, s, over, True, 0.7, (True, True, v is not None, True)
        )
    torch.testing.assert_close(s, exact.detach(), rtol=0, atol=1e-12)
    for got, gradient in zip([g for g in found if g is not None], wanted, strict=True):
        torch.testing.assert_close(got, gradient, rtol=0, atol=1e-12)


def test_extremes_are_finite(over):
    """No NaN at zero input, nor at logits of 1e4 and more."""
    u, weight = torch.zeros(2, 4, 3), torch.randn(3, 4, 5, 3)
    for scale in (0.0, 1e3):
        u = scale * torch.randn(2, 4, 3)
        with interpreted():
            options = (None, None, None)
            settings = (False, True, 1.0, "exact", 0.0)
            v, s, _ = dynamic_routing.dynamic_routing_forward(
                u, weight, *options, 3, over, *settings, True, False
            )
            grads = dynamic_routing.dynamic_routing_backward(
                torch.randn_like(v), u, weight, *options, s, over, False, *settings,
                (True, True, False, False),
            )  # fmt: skip
        for tensor in (v, s, *grads[:2]):
            assert torch.isfinite(tensor).all()


def test_priors_that_no_exponential_holds(over):
    """Infinitely far below 0 for all that a tile or a part has, and finitely for all there is."""
    u, weight = drawn(3, 4, 3).detach(), drawn(3, 4, 5, 3).detach()
    absent = torch.zeros(4, 3, dtype=torch.float64)
    absent[:, 2] = -torch.inf
    absent[3] = 0.0
    low = torch.full((4, 3), -1e3, dtype=torch.float64)
    settings = (False, True, 1.0, "exact", 0.0)
    for prior in (absent, low):
        leaves = [t.clone().requires_grad_() for t in (u, weight)]
        options = definition.Options(3, over, False, *settings)
        exact, exact_couplings = definition.route(*leaves, None, prior, None, options)
        grad = torch.randn_like(exact)
        with interpreted():
            v, s, couplings = dynamic_routing.dynamic_routing_forward(
                u, weight, None, prior, None, 3, over, *settings, True, True
            )
            found = dynamic_routing.dynamic_routing_backward(
                grad, u, weight, None, prior, None, s, over, False, *settings,
                (True, True, False, False),
            )  # fmt: skip
        wanted = (exact.detach(), exact_couplings, *torch.autograd.grad(exact, leaves, grad))
        for a, b in zip((v, couplings, *found[:2]), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_every_size_has_a_tile(itemsize):
    for batch, o, e, d in ((1, 1, 1, 1), (128, 10, 16, 8), (128, 64, 32, 16), (5, 1000, 16, 64)):
        e, d = (max(16, routing.triton.next_power_of_2(size)) for size in (e, d))
        for over_in in (False, True):
            tiling = routing.tiling_of(batch, o, e, d, itemsize, over_in)
            assert tiling.capsules * tiling.tiles >= o
            assert tiling.samples * tiling.capsules * e * itemsize <= routing.TILE_BYTES
            assert tiling.capsules * e * d * itemsize <= routing.WEIGHT_BYTES


def test_what_it_refuses():
    u, weight = torch.randn(2, 4, 3), torch.randn(3, 4, 5, 3)
    with interpreted():
        for over in ("out", "in"):
            assert dynamic_routing.unsupported(u, weight, over) == []
        assert dynamic_routing.unsupported(u, torch.empty(1000, 4, 16, 3)) == []
        assert "bfloat16" in dynamic_routing.unsupported(u.bfloat16(), weight)[0]
        wide = torch.empty(3, 4, 2048, 3)
        assert "2048" in dynamic_routing.unsupported(u, wide)[0]

"""Dynamic routing on sizes, strides and options that nobody chose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.backends import missing
from lamina.functional import dynamic_routing, routing_pass, squash
from lamina.layers.dynamic_routing import reference

pytestmark = pytest.mark.skipif(bool(missing["cpp"]), reason="the C++ module is not built")

# What the kernels walk over is cut at 8, 16 and 32: samples, capsules and their dimensions.
SIZES = st.tuples(
    st.integers(0, 35),
    st.integers(1, 20),
    st.integers(1, 18),
    st.integers(1, 9),
    st.integers(1, 18),
)
OPTIONS = st.fixed_dictionaries(
    {
        "iterations": st.integers(1, 4),
        "coupling_dim": st.sampled_from(["out", "in"]),
        "detach_votes": st.booleans(),
        "leaky": st.booleans(),
        "accumulate": st.booleans(),
        "scale": st.sampled_from([1.0, 0.3]),
        "squash": st.sampled_from(["exact", "sqrt_eps"]),
    }
)


def drawn(shape, layout, scale=1.0):
    """The same distribution in memory that is contiguous, transposed, strided or expanded.

    A leaf as it is: any operation on it would bring its elements together.
    """

    def normal(*sizes):
        return scale * torch.randn(sizes, dtype=torch.float64)

    if layout == "transposed":
        made = normal(*shape[::-1]).permute(*range(len(shape))[::-1])
    elif layout == "strided":
        made = normal(*shape, 2)[..., 1]
    elif layout == "expanded":
        made = normal(1, *shape[1:]).expand(shape)
    else:
        made = normal(*shape)
    return made.requires_grad_()


LAYOUTS = st.sampled_from(["contiguous", "transposed", "strided", "expanded"])


@settings(max_examples=120)
@given(sizes=SIZES, options=OPTIONS, layouts=st.tuples(LAYOUTS, LAYOUTS, LAYOUTS))
def test_any_sizes_strides_and_options(sizes, options, layouts):
    b, i, o, d, e = sizes
    options = {**options, "eps": 1e-3 if options["squash"] == "sqrt_eps" else 0.0}
    u = drawn((b, i, d), layouts[0])
    weight = drawn((o, i, e, d), layouts[1], scale=1 / d)
    prior = drawn((b, i, o), layouts[2])
    got = dynamic_routing(u, weight, prior=prior, backend="cpp", **options)
    wanted = reference(u, weight, prior=prior, **options)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    grad = torch.randn_like(wanted)
    leaves = (u, weight, prior)
    for ours, torchs in zip(
        torch.autograd.grad(got, leaves, grad), torch.autograd.grad(wanted, leaves, grad)
    ):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-11)


@settings(max_examples=80)
@given(
    sizes=SIZES,
    layouts=st.tuples(*[LAYOUTS] * 4),
    coupling_dim=st.sampled_from(["out", "in"]),
    leaky=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
)
def test_any_routing_pass(sizes, layouts, **options):
    b, i, o, d, e = sizes
    u, v = drawn((b, i, d), layouts[0]), drawn((b, o, e), layouts[1])
    weight, prior = drawn((o, i, e, d), layouts[2], scale=1 / d), drawn((i, o), layouts[3])
    leaves = (u, weight, v, prior)
    got, wanted = (
        routing_pass(*leaves[:3], prior=prior, backend=backend, **options)
        for backend in ("cpp", "reference")
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    grad = torch.randn_like(wanted)
    for ours, torchs in zip(
        torch.autograd.grad(got, leaves, grad), torch.autograd.grad(wanted, leaves, grad)
    ):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-11)


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    layout=LAYOUTS,
    kind=st.sampled_from(["exact", "sqrt_eps", "norm_eps", "exp"]),
)
def test_squash_of_any_shape_and_strides(shape, layout, kind):
    input = drawn(tuple(shape), layout)
    eps = 0.0 if kind == "exact" else 1e-3
    got = squash(input, kind, eps, backend="cpp")
    wanted = squash(input, kind, eps, backend="reference")
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)
    grad = torch.randn_like(wanted)
    (ours,) = torch.autograd.grad(got, input, grad)
    (torchs,) = torch.autograd.grad(wanted, input, grad)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-12)

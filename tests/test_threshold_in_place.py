"""Threshold in place: what is overwritten, what is kept, and all that torch forbids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import lamina
from lamina.functional import threshold_relu
from lamina.layers.threshold import _SMALL_IN_PLACE, unpack_mask
from saved import saved_bytes

cpp = pytest.mark.skipif(
    bool(lamina.backends.BACKENDS["cpp"].missing), reason="the C++ module is not built"
)


def leaf(*shape, **options):
    return torch.randn(*shape, **options, requires_grad=True)


def kernel(input, threshold=0.1):
    return threshold_relu(input, threshold, inplace=True, backend="cpp")


def automatic(input):
    """Large enough for the kernels."""
    assert input.numel() >= _SMALL_IN_PLACE
    return lamina.ThresholdReLU(0.1, inplace=True)(input)


def choice_of(input, call=automatic):
    (decision,) = lamina.explain(call, input)
    return decision


def test_the_output_is_the_input(backend):
    """On every backend, with gradients and without."""
    for x in (torch.randn(100), leaf(100) * 1.0):
        expected = F.threshold(x.detach(), 0.2, 0.0)
        address, version = x.data_ptr(), x._version
        y = lamina.ThresholdReLU(0.2, inplace=True)(x)
        assert y is x
        assert x.data_ptr() == address
        assert torch.equal(x, expected)
        if backend[0] != "cuda" or backend[1].type == "cuda" or x.requires_grad:
            assert x._version > version  # The host shim's ops are not known to autograd.


@cpp
def test_keeps_one_bit_an_element_and_nothing_else():
    """ATen keeps a copy of what it overwrites."""
    x = leaf(1 << 16)
    assert saved_bytes(lambda: kernel(x * 1.0)) == (1 << 16) // 8
    large = leaf(_SMALL_IN_PLACE)
    assert saved_bytes(lambda: automatic(large * 1.0)) == _SMALL_IN_PLACE // 8
    assert saved_bytes(lambda: F.threshold(x * 1.0, 0.1, 0.0, inplace=True)) == 4 << 16


@cpp
def test_the_mask():
    x = torch.randn(5, 6, 7).permute(2, 0, 1)
    before = x.clone()
    mask = torch.ops.lamina.threshold_forward_(x, 0.3, True)
    assert torch.equal(unpack_mask(mask, x), before > 0.3)
    assert torch.equal(x, F.threshold(before, 0.3, 0.0))
    assert torch.ops.lamina.threshold_forward_(x, 0.3, False).shape == (0,)


@cpp
@settings(max_examples=60)
@given(
    n=st.integers(0, 3000),
    offset=st.integers(0, 9),
    threshold=st.floats(-2, 2, width=16),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_length_and_alignment(n, offset, threshold, dtype):
    x, grad = (torch.randn(n + offset, dtype=dtype) for _ in range(2))
    x[::7] = float("nan")
    around = x.clone()
    expected = F.threshold(x[offset:], threshold, 0.0)
    written = x[offset:]
    mask = torch.ops.lamina.threshold_forward_(written, threshold, True)
    torch.testing.assert_close(written, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(x[:offset], around[:offset], rtol=0, atol=0, equal_nan=True)
    got = torch.ops.lamina.threshold_backward(grad[offset:], mask)
    kept = ~(around[offset:].double() <= threshold)
    assert torch.equal(got, torch.where(kept, grad[offset:], 0))


@cpp
@pytest.mark.slow
def test_beyond_the_caches():
    x = leaf((9 << 20) + 5)
    y = automatic(x * 1.0)
    assert choice_of(x * 1.0).backend == "cpp"
    assert torch.equal(y, F.threshold(x, 0.1, 0.0))
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, (x > 0.1).float())


@cpp
def test_gradients_of_a_chain():
    """Overwriting what another op made, and being overwritten by the next one."""
    x = leaf(4, 6, dtype=torch.float64)

    def chain(x):
        return kernel(kernel(x * 2.0, -0.3).mul_(1.5)).cos()

    assert torch.autograd.gradcheck(chain, x)
    assert torch.autograd.gradgradcheck(chain, x)


@cpp
def test_retain_grad_and_hooks():
    """They see the gradient of the output, as they do with torch's own."""
    found = []
    for call in (kernel, lambda x: F.threshold(x, 0.1, 0.0, inplace=True)):
        x = torch.linspace(-1, 1, 9, requires_grad=True)
        z = x * 1.0
        z.retain_grad()
        call(z)
        z.sum().backward()
        found.append((z.grad, x.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def refusing(call, make):
    """What a call says of an input, which must be as it was."""
    x = make()
    before = x.detach().clone()
    with pytest.raises(RuntimeError) as error:
        call(x)
    assert torch.equal(x.detach(), before)
    return str(error.value)


FORBIDDEN = {
    "a leaf": lambda: leaf(_SMALL_IN_PLACE),
    "a view of a leaf": lambda: leaf(2, _SMALL_IN_PLACE)[0],
    "one of several views": lambda: (leaf(2, _SMALL_IN_PLACE) * 1.0).unbind()[0],
}


@pytest.mark.parametrize("make", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_torch_forbids(make):
    """In torch's words, and before anything is written."""
    with torch.random.fork_rng():
        theirs = refusing(lambda x: F.threshold(x, 0.1, 0.0, inplace=True), make)
    assert refusing(automatic, make) == theirs


@cpp
def test_what_torch_forbids_a_kernel_that_was_asked_for():
    assert "a leaf Variable that requires grad" in refusing(kernel, lambda: leaf(9))
    with torch.inference_mode():
        x = torch.randn(9)
    with pytest.raises(RuntimeError, match="inference tensor"):
        kernel(x)
    with torch.inference_mode():
        x = torch.randn(9)
        expected = F.threshold(x, 0.1, 0.0)
        assert torch.equal(kernel(x), expected)


@cpp
def test_what_was_saved_and_is_overwritten_is_noticed():
    x = leaf(_SMALL_IN_PLACE)
    for call in (kernel, automatic, lambda x: torch.ops.lamina.threshold_forward_(x, 0.1, True)):
        y = x.exp()  # It saves its result.
        call(y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    y = automatic(x * 1.0)
    z = y.square()
    with torch.no_grad():
        automatic(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@cpp
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: x.t()[::2], "must fill their memory"),
        (lambda x: x[:, :1].expand(-1, x.shape[1]), "must fill their memory"),
        (lambda x: x[1:], "the gradients of a view"),
        (lambda x: x.view(-1), "the gradients of a view"),
    ],
    ids=["gaps", "expanded", "a part", "other sizes"],
)
def test_atens_kernel_where_ours_has_no_rules(make, reason, request):
    x = leaf(4, _SMALL_IN_PLACE)
    ours, theirs = x * 1.0, x * 1.0
    decision = choice_of(make(ours))
    assert decision.backend == "reference"
    assert reason in decision.reasons["cpp"][0]
    F.threshold(make(theirs), 0.1, 0.0, inplace=True)
    assert torch.equal(ours, theirs)
    if "expand" in request.node.name:
        return  # Nor has autograd any: its backward pass raises.
    grad = torch.randn_like(x)
    for a, b in zip(*(torch.autograd.grad(y, x, grad) for y in (ours, theirs)), strict=True):
        assert torch.equal(a, b)


@cpp
def test_atens_kernel_where_it_is_as_fast():
    x = torch.randn(_SMALL_IN_PLACE)
    assert "without a gradient" in choice_of(x).reasons["cpp"][0]
    small = leaf(_SMALL_IN_PLACE - 1) * 1.0
    decision = choice_of(small, lamina.ThresholdReLU(0.1, inplace=True))
    assert decision.backend == "reference"
    assert "caches" in decision.reasons["cpp"][0]
    assert choice_of(leaf(_SMALL_IN_PLACE) * 1.0).backend == "cpp"


@cpp
def test_a_leaf_without_gradients_is_overwritten():
    x = leaf(100)
    expected = F.threshold(x.detach(), 0.1, 0.0)
    with torch.no_grad(), torch.profiler.profile() as profile:
        assert kernel(x) is x
    assert torch.equal(x, expected)
    assert "lamina::threshold_forward_" in {event.name for event in profile.events()}


def test_compiled():
    torch._dynamo.reset()
    layer = lamina.ThresholdReLU(0.1, inplace=True)
    compiled = torch.compile(lambda x: layer(x * 2.0) + 1.0, fullgraph=True, backend="aot_eager")
    x = leaf(_SMALL_IN_PLACE)
    y = compiled(x)
    assert torch.equal(y, F.threshold(x * 2.0, 0.1, 0.0) + 1.0)
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, 2.0 * (2.0 * x > 0.1))
    plain = torch.randn(100)
    expected = F.threshold(plain, 0.1, 0.0)
    torch.compile(layer, fullgraph=True, backend="aot_eager")(plain)
    assert torch.equal(plain, expected)


@cpp
def test_the_op_in_a_compiled_program():
    """Functionalization has to see what it overwrites."""
    torch._dynamo.reset()

    def program(x):
        y = x * 2.0
        mask = torch.ops.lamina.threshold_forward_(y, 0.1, True)
        return y + 1.0, mask

    x = torch.randn(1000)
    got = torch.compile(program, fullgraph=True, backend="aot_eager")(x)
    for a, b in zip(got, program(x), strict=True):
        assert torch.equal(a, b)


def test_exported():
    layer = torch.nn.Sequential(torch.nn.Tanh(), lamina.ThresholdReLU(0.1, inplace=True))
    x = torch.randn(100)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_functorch():
    x = torch.randn(3, _SMALL_IN_PLACE)

    def call(x):
        return automatic(x * 1.0)

    expected = F.threshold(x, 0.1, 0.0)
    assert torch.equal(torch.func.vmap(call)(x), expected)
    gradient = torch.func.grad(lambda x: call(x).sum())
    assert torch.equal(gradient(x[0]), (x[0] > 0.1).float())
    _, tangent = torch.func.jvp(call, (x[0],), (x[1],))
    assert torch.equal(tangent, torch.where(x[0] > 0.1, x[1], 0))


@cpp
def test_autocast_and_checkpoint():
    x = leaf(_SMALL_IN_PLACE)
    expected = F.threshold(x.detach(), 0.1, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = automatic(x * 1.0)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    y = torch.utils.checkpoint.checkpoint(lambda x: automatic(x * 1.0), x, use_reentrant=False)
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, (x > 0.1).float())

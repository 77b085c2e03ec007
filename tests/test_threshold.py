"""What is special to threshold: the article's example, memory, layouts, in place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import lamina
from lamina.functional import threshold_relu
from saved import saved_bytes

cpp = pytest.mark.skipif(
    bool(lamina.backends.BACKENDS["cpp"].missing), reason="the C++ module is not built"
)


def test_the_articles_example():
    x = torch.tensor([[-1.0, 0.3], [0.6, 1.2]])
    torch.testing.assert_close(lamina.ThresholdReLU(0.5)(x), torch.tensor([[0, 0], [0.6, 1.2]]))


def test_bad_construction():
    with pytest.raises(TypeError, match="ThresholdReLU: threshold must be a number, got str"):
        lamina.ThresholdReLU("0.1")


@cpp
def test_saves_one_bit_an_element():
    x = torch.randn(1 << 16, requires_grad=True)
    assert saved_bytes(lambda: threshold_relu(x * 1.0, backend="cpp")) == (1 << 16) // 8
    with torch.no_grad():
        assert torch.ops.lamina.threshold_forward(x, 0.0, False)[1].numel() == 0


@cpp
@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 1, 0, 2), (1, 0, 3, 2)])
def test_any_dense_layout_is_kept(order):
    x = torch.randn(3, 4, 5, 6).permute(order).requires_grad_()
    y = threshold_relu(x, 0.1, backend="cpp")
    assert y.stride() == x.stride()
    grad = torch.randn(y.shape)
    (got,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(got, grad * (x > 0.1), rtol=0, atol=0)


@cpp
@settings(max_examples=100)
@given(
    n=st.integers(0, 3000),
    offset=st.integers(0, 9),
    threshold=st.floats(-2, 2, width=16),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_length_and_alignment(n, offset, threshold, dtype):
    x = torch.randn(n + offset, dtype=dtype)[offset:].requires_grad_()
    y = threshold_relu(x, threshold, backend="cpp")
    torch.testing.assert_close(y, F.threshold(x, threshold, 0.0), rtol=0, atol=0)
    grad = torch.randn(n + offset, dtype=dtype)[offset:]
    (got,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(got, torch.where(x.double() > threshold, grad, 0), rtol=0, atol=0)


@cpp
@settings(max_examples=100)
@given(shape=st.lists(st.integers(0, 7), max_size=4), data=st.data())
def test_any_strides(shape, data):
    """Dimensions in any order in memory, with gaps or expanded; the gradient's are others."""

    def drawn():
        strides, size = [0] * len(shape), 1
        for d in data.draw(st.permutations(range(len(shape)))):
            step = data.draw(st.sampled_from([1, 1, 2, 0]))
            strides[d] = size * step
            size *= max(shape[d] * step, 1)
        return torch.randn(size).as_strided(shape, strides)

    x, grad = drawn().requires_grad_(), drawn()
    y = threshold_relu(x, 0.1, backend="cpp")
    torch.testing.assert_close(y, F.threshold(x, 0.1, 0.0), rtol=0, atol=0)
    (got,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(got, torch.where(x > 0.1, grad, 0), rtol=0, atol=0)


@cpp
@pytest.mark.slow
def test_streamed_stores_beyond_the_caches():
    x = torch.randn((9 << 20) + 5, requires_grad=True)
    y = threshold_relu(x, 0.3, backend="cpp")
    torch.testing.assert_close(y, F.threshold(x, 0.3, 0.0), rtol=0, atol=0)
    (got,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(got, (x > 0.3).float(), rtol=0, atol=0)

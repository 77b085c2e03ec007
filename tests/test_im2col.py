"""im2col and col2im on windows, sizes and strides that nobody chose, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lamina.backends import missing
from lamina.functional import col2im, im2col
from lamina.windows import positions

pytestmark = pytest.mark.skipif(bool(missing["cpp"]), reason="the C++ module is not built")


def pair(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


WINDOWS = {
    "kernel": pair(1, 4),
    "dilation": pair(1, 2),
    "padding": pair(0, 3),
    "stride": pair(1, 3),
    "size": pair(1, 11),
    "images": st.integers(0, 3),
    "channels": st.integers(1, 9),
    "transposed": st.booleans(),
}


def compare(ours, torchs, input):
    """Sums of at most 16 terms: their order may differ, and with it a few roundings."""
    torch.testing.assert_close(ours, torchs)
    grad = torch.randn_like(torchs)
    (a,) = torch.autograd.grad(ours, input, grad)
    (b,) = torch.autograd.grad(torchs, input, grad)
    torch.testing.assert_close(a, b)


def drawn(shape, transposed):
    if transposed:
        input = torch.randn(shape[::-1], dtype=torch.float64).permute(*range(len(shape))[::-1])
    else:
        input = torch.randn(shape, dtype=torch.float64)
    return input.requires_grad_()


@settings(max_examples=150)
@given(**WINDOWS)
def test_im2col(kernel, dilation, padding, stride, size, images, channels, transposed):
    window = (kernel, dilation, padding, stride)
    assume(min(positions(size, *window)) > 0)
    input = drawn((images, channels, *size), transposed)
    ours = im2col(input, *window, backend="cpp")
    if images:
        compare(ours, F.unfold(input, *window), input)
    else:  # F.unfold does not take a batch of none.
        rows, columns = channels * kernel[0] * kernel[1], positions(size, *window)
        assert ours.shape == (0, rows, columns[0] * columns[1])


@settings(max_examples=150)
@given(**WINDOWS)
def test_col2im(kernel, dilation, padding, stride, size, images, channels, transposed):
    window = (kernel, dilation, padding, stride)
    columns = positions(size, *window)
    assume(min(columns) > 0 and images > 0)
    rows = channels * kernel[0] * kernel[1]
    input = drawn((images, rows, columns[0] * columns[1]), transposed)
    compare(col2im(input, size, *window, backend="cpp"), F.fold(input, size, *window), input)

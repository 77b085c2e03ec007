"""First layers, of up to 4 channels, have kernels of their own (csrc/conv2d/few_channels.h)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import lamina
from lamina.functional import conv2d

# (input, weight, options): vectors and tiles that end everywhere, more rows than a strip, more
# pixels than a run, more outputs than a set, more depth than a pass, filters past the image.
CALLS = {
    "resnet": ((2, 3, 37, 45), (21, 3, 7, 7), {"stride": 2, "padding": 3}),
    "vgg": ((1, 3, 18, 32), (64, 3, 3, 3), {"padding": 1}),
    "lenet": ((3, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    "strides above 2": ((2, 4, 23, 41), (9, 4, 3, 5), {"stride": (2, 3), "padding": (1, 4)}),
    "dilation": ((1, 2, 19, 35), (5, 2, 3, 3), {"padding": 3, "dilation": (3, 2), "stride": 2}),
    "dilation and stride 3": ((1, 2, 19, 35), (5, 2, 2, 3), {"dilation": 2, "stride": 3}),
    "filters past the image": ((2, 1, 3, 2), (3, 1, 5, 7), {"padding": (2, 3)}),
    "nothing but padding": ((1, 2, 1, 1), (3, 2, 2, 2), {"padding": 4, "stride": 3}),
    "a pixel": ((1, 4, 3, 3), (130, 4, 3, 3), {}),
    "many outputs": ((1, 1, 6, 9), (150, 1, 4, 4), {"padding": 1}),
    "deep": ((1, 4, 9, 20), (15, 4, 9, 9), {"padding": 4}),
    "wide": ((2, 1, 9, 610), (3, 1, 3, 3), {"padding": 1}),
    "high": ((2, 3, 150, 70), (70, 3, 3, 3), {"padding": 1}),
}


def gradients(tensors, output, grad):
    return torch.autograd.grad(output, tensors, grad, allow_unused=True)


def draw(input, weight, dtype, layout):
    tensors = (
        torch.randn(input, dtype=dtype).contiguous(memory_format=layout),
        torch.randn(weight, dtype=dtype),
        torch.randn(weight[0], dtype=dtype),
    )
    return tuple(t.requires_grad_() for t in tensors)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("call", CALLS)
def test_first_layers(call, dtype, activation, layout):
    input, weight, options = CALLS[call]
    tensors = draw(input, weight, dtype, layout)
    exact = tuple(t.detach().double().requires_grad_() for t in tensors)
    finish = {"none": lambda z: z, "relu": torch.relu, "silu": F.silu}[activation]
    expected = finish(F.conv2d(*exact, **options))
    grad = torch.randn_like(expected)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        got = conv2d(*tensors, activation=activation, backend="cpp", **options)
        found.append((got, *gradients(tensors, got, grad.to(dtype))))
    torch.set_num_threads(threads)
    for ours, theirs in zip(found[0], (expected, *gradients(exact, expected, grad)), strict=True):
        scale = 1e-5 if dtype == torch.float32 else 1e-13
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert error < scale
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [2, 3])
def test_pixels_that_no_filter_reaches(stride, layout):
    """They are staged, but neither infinity nor NaN may come out of them."""
    input, weight, bias = draw(
        (2, 3, 3 * stride + 4, 7 * stride + 4), (5, 3, 3, 3), torch.float32, layout
    )
    reached = [(size - 3) // stride * stride + 3 for size in input.shape[2:]]
    assert reached[1] < input.shape[3]
    with torch.no_grad():
        input[:, :, reached[0] :] = float("nan")
        input[:, :, :, reached[1] :] = float("inf")
    output = conv2d(input, weight, bias, stride, backend="cpp")
    _, *ours = gradients((input, weight, bias), output, torch.ones_like(output))
    clean = input.detach().nan_to_num(0, 0, 0)
    expected = conv2d(clean, weight, bias, stride, backend="reference")
    theirs = gradients((weight, bias), expected, torch.ones_like(expected))
    torch.testing.assert_close((output, *ours), (expected, *theirs), rtol=1e-4, atol=1e-4)


def test_infinity_stays_where_filters_see_it():
    input, weight, _ = draw((1, 2, 9, 37), (3, 2, 3, 3), torch.float32, torch.contiguous_format)
    with torch.no_grad():
        input[0, 1, 8, 36] = float("inf")  # the corner, which taps (1, 1) to (2, 2) see
    with lamina.use_backend("cpp"):
        output = conv2d(input, weight, padding=1)
    grad = torch.ones_like(output)
    (grad_weight,) = gradients((weight,), output, grad)
    finite = torch.ones(3, 2, 3, 3, dtype=torch.bool)
    finite[:, 1, 1:, 1:] = False
    assert torch.equal(grad_weight.isfinite(), finite)
    seen = torch.ones_like(output, dtype=torch.bool)
    seen[:, :, 7:, 35:] = False
    assert torch.equal(output.isfinite(), seen)

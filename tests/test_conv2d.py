"""What is special to conv2d: torch's own samples, every combination of arguments, plain loops."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import lamina
from lamina.backends import kernels
from lamina.functional import col2im, conv2d, im2col
from lamina.layers.conv2d import SPEC
from lamina.layers.conv2d_call import Options
from lamina.layers.conv2d_checks import ALGORITHMS

torch_samples = pytest.importorskip(
    "torch.testing._internal.common_methods_invocations", reason="torch's tests need expecttest"
)


cpp = pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")


@pytest.fixture(params=["reference", "cpp"])
def backend(request):
    """The backends that run on any machine; a call that one refuses is skipped by name."""
    with lamina.use_backend(request.param):
        try:
            conv2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
        except ValueError as error:
            pytest.skip(str(error))
        yield request.param


def opinfo(name):
    return next(info for info in torch_samples.op_db if info.name == name)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("nn.functional.conv2d", conv2d, F.conv2d),
        ("nn.functional.unfold", im2col, F.unfold),
    ],
)
def test_torch_samples(name, ours, theirs, backend):
    samples = list(opinfo(name).sample_inputs("cpu", torch.float64, requires_grad=True))
    assert len(samples) > 4
    for sample in samples:
        tensors = [t for t in (sample.input, *sample.args) if isinstance(t, torch.Tensor)]
        got = ours(sample.input, *sample.args, **sample.kwargs)
        expected = theirs(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(got, expected)
        grad = torch.randn_like(expected)
        for a, b in zip(
            torch.autograd.grad(got, tensors, grad),
            torch.autograd.grad(expected, tensors, grad),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_torch_samples_gradgradcheck(backend):
    for sample in opinfo("nn.functional.conv2d").sample_inputs(
        "cpu", torch.float64, requires_grad=True
    ):
        tensors = tuple(t for t in (sample.input, *sample.args) if t is not None)
        if sum(t.numel() for t in tensors) < 150:

            def call(*tensors, sample=sample):
                return conv2d(*tensors, **sample.kwargs)

            assert torch.autograd.gradgradcheck(call, tensors)


def test_torch_error_inputs(backend):
    errors = list(opinfo("nn.functional.conv2d").error_inputs("cpu"))
    assert len(errors) > 8
    for error in errors:
        sample = error.sample_input
        with pytest.raises((ValueError, TypeError), match="conv2d: "):
            conv2d(sample.input, *sample.args, **sample.kwargs)


def test_torch_module_inputs(backend):
    from torch.testing._internal.common_modules import module_db

    info = next(info for info in module_db if info.module_cls is nn.Conv2d)
    inputs = info.module_inputs_func(info, "cpu", torch.float64, requires_grad=True, training=True)
    for case in inputs:
        args, kwargs = case.constructor_input.args, case.constructor_input.kwargs
        plain = nn.Conv2d(*args, **kwargs).double()
        layer = lamina.Conv2d(*args, **kwargs).double()
        layer.load_state_dict(plain.state_dict())
        x = case.forward_input.args[0]
        compare_layers(layer, plain, x)


def compare_gradients(tensors, expected, got):
    torch.testing.assert_close(got, expected)
    grad = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(got, tensors, grad),
        torch.autograd.grad(expected, tensors, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def compare_layers(layer, plain, x):
    parameters = list(plain.parameters()), list(layer.parameters())
    expected, got = plain(x), layer(x)
    torch.testing.assert_close(got, expected)
    grad = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(got, [x, *parameters[1]], grad),
        torch.autograd.grad(expected, [x, *parameters[0]], grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_padding_modes(mode, padding, backend):
    options = dict(padding=padding, padding_mode=mode, dtype=torch.float64)
    torch.manual_seed(3)
    plain = nn.Conv2d(4, 6, (3, 4), groups=2, **options)
    torch.manual_seed(3)
    layer = lamina.Conv2d(4, 6, (3, 4), groups=2, **options)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    compare_layers(layer, plain, torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True))


def test_layer_with_activation_and_residual(backend):
    layer = lamina.Conv2dReLU(3, 4, 3, padding=1)
    assert "activation='relu'" in repr(layer)
    x, residual = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    expected = torch.relu(F.conv2d(x, layer.weight, layer.bias, padding=1) + residual)
    torch.testing.assert_close(layer(x, residual), expected)


@pytest.mark.parametrize("turned", ["input", "residual"])
def test_residual_in_another_layout_unbatched_or_under_autocast(turned, backend):
    layer = lamina.Conv2dReLU(16, 16, 3, padding=1)
    x, residual = torch.randn(2, 2, 16, 12, 12)
    expected = torch.relu(F.conv2d(x, layer.weight, layer.bias, padding=1) + residual)
    images = {"input": x, "residual": residual}
    images[turned] = images[turned].contiguous(memory_format=torch.channels_last)
    got = layer(*images.values())
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous() == (turned == "residual")
    torch.testing.assert_close(layer(x[0], residual[0]), expected[0])
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(*images.values())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.03, atol=0.03)


@cpp
def test_layer_hands_on_its_algorithm():
    """F(2x2) and F(4x4) round otherwise than im2col."""
    x, found = torch.randn(2, 32, 12, 12), []
    for algorithm in ("im2col", "winograd", "winograd4"):
        torch.manual_seed(0)
        layer = lamina.Conv2d(32, 32, 3, algorithm=algorithm)
        assert f"algorithm='{algorithm}'" in repr(layer)
        with lamina.use_backend("cpp"):
            found.append(layer(x))
            named = conv2d(x, layer.weight, layer.bias, algorithm=algorithm)
        assert torch.equal(found[-1], named)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activation": "rleu"}, "Conv2d: activation is 'rleu'; the fused ones"),
        ({"algorithm": "fft"}, "Conv2d: algorithm is 'fft'; it must be one of"),
        ({"in_channels": 0}, "Conv2d: in_channels must be at least 1, got 0"),
        ({"out_channels": -4}, "Conv2d: out_channels must be at least 1, got -4"),
        ({"kernel_size": 0}, "Conv2d: kernel_size must be at least 1, got 0"),
        ({"kernel_size": (3, 3, 3)}, "Conv2d: kernel_size must be an int or two ints, got"),
        ({"stride": (1, 0)}, r"Conv2d: stride must be at least 1, got \(1, 0\)"),
        ({"dilation": -2}, "Conv2d: dilation must be at least 1, got -2"),
        ({"padding": -1}, "Conv2d: padding must be at least 0, got -1"),
        ({"padding": "sane"}, "Invalid padding string 'sane'"),
        ({"groups": 0}, "Conv2d: groups must be at least 1, got 0"),
        ({"groups": 2}, "Conv2d: groups must divide in_channels 3 and out_channels 4, got 2"),
        ({"groups": 3}, "Conv2d: groups must divide in_channels 3 and out_channels 4, got 3"),
    ],
)
def test_bad_construction(options, match):
    with pytest.raises(ValueError, match=match):
        lamina.Conv2d(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3, **options})


@pytest.mark.parametrize("name", ["out_channels", "kernel_size", "stride", "padding", "groups"])
def test_construction_takes_ints_only(name):
    for value in (2.0, "2", None):
        with pytest.raises((TypeError, ValueError), match=name if value != "2" else "2"):
            lamina.Conv2d(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3, name: value})


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_construction_takes_all_that_torch_takes(mode):
    """numpy's ints, which np.prod gives; one number in a list; and, but for zeros, cutting off."""
    x, two = torch.randn(32, 4, 16, 16), np.int64(2)
    options = {"stride": two, "dilation": (two, 1), "groups": two, "padding_mode": mode}
    for padding in [two, (1, two), "valid", (0, -1)][: 3 + (mode == "reflect")]:
        theirs = torch.nn.Conv2d(4, np.int64(8), [two, 3], padding=padding, **options)
        ours = lamina.Conv2d(4, np.int64(8), [two, 3], padding=padding, **options)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))
    assert lamina.Conv2d(4, 8, [3], padding=[1])(x).shape == (32, 8, 16, 16)


def test_no_channels_are_refused(backend):
    """ATen's result then has as many channels as the input: none."""
    x, weight = torch.randn(2, 0, 8, 8), torch.randn(5, 0, 3, 3)
    with pytest.raises(ValueError, match=r"input of shape \(2, 0, 8, 8\) channels and pixels"):
        conv2d(x, weight)
    with lamina.use_backend(None), pytest.raises(ValueError, match="channels and pixels"):
        conv2d(x, weight)
    if backend != "reference":
        geometry = ([1, 1], [0, 0], [1, 1], 1)
        with pytest.raises((RuntimeError, ValueError), match="groups"):
            kernels("conv2d", backend).forward(
                x, weight, None, None, *geometry, "none", 0.0, "auto", False, False
            )


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_layout_is_kept(padding_mode, backend):
    layer = lamina.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode)
    x = torch.randn(2, 3, 6, 5)
    images = x.contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    assert layer(images).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(images), layer(x))


def seven_loops(input, weight, stride, padding, dilation):
    images, channels, height, width = input.shape
    outs, _, rows, columns = weight.shape
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            (height, width), (rows, columns), stride, padding, dilation, strict=True
        )
    ]
    output = torch.zeros(images, outs, *size, dtype=input.dtype)
    for n, k, y, x in itertools.product(range(images), range(outs), *map(range, size)):
        for c, r, s in itertools.product(range(channels), range(rows), range(columns)):
            row = y * stride[0] + r * dilation[0] - padding[0]
            column = x * stride[1] + s * dilation[1] - padding[1]
            if 0 <= row < height and 0 <= column < width:
                output[n, k, y, x] += input[n, c, row, column] * weight[k, c, r, s]
    return output


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [((1, 1), (0, 0), (1, 1)), ((2, 1), (1, 2), (1, 1)), ((1, 3), (2, 0), (2, 1))],
)
def test_against_seven_loops(stride, padding, dilation, backend):
    input = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    weight = torch.randn(3, 2, 2, 3, dtype=torch.float64)
    expected = seven_loops(input, weight, stride, padding, dilation)
    torch.testing.assert_close(conv2d(input, weight, None, stride, padding, dilation), expected)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_arguments(data, backend):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups = draw(1, 3)
    ins, outs = groups * draw(1, 9), groups * draw(1, 9)
    kernel, stride, dilation = ([draw(1, 4), draw(1, 4)] for _ in range(3))
    padding = [draw(0, 4), draw(0, 4)]
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for d, k, p in zip(dilation, kernel, padding)]
    size = [n + draw(0, 12) for n in least]
    images = draw(0, 3)
    winograd = kernel == [3, 3] and stride + dilation == [1] * 4
    algorithm = data.draw(st.sampled_from(ALGORITHMS if winograd else ALGORITHMS[:2]))
    layout = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    torch.manual_seed(draw(0, 1 << 20))
    input = torch.randn(images, ins, *size, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(outs, ins // groups, *kernel, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (input, weight, torch.randn(outs, dtype=torch.float64))]
    geometry = (stride, padding, dilation, groups)
    expected = torch.relu(F.conv2d(*tensors, *geometry))
    got = conv2d(*tensors, *geometry, activation="relu", algorithm=algorithm)
    compare_gradients(tensors, expected, got)


def test_columns_times_weight_is_the_convolution(backend):
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64)
    product = weight.flatten(1) @ im2col(x, (3, 2), padding=1)
    torch.testing.assert_close(product.view(2, 4, 6, 6), conv2d(x, weight, padding=1))
    cover = col2im(im2col(torch.ones_like(x), (3, 2), padding=1), (6, 5), (3, 2), padding=1)
    assert cover.max() == 6
    assert cover[0, 0, 0, 0] == 4


def test_autocast(backend):
    layer = lamina.Conv2dReLU(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(x), rtol=0.02, atol=0.02)
    output.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("algorithm", ["winograd", "winograd4"])
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_winograd(algorithm, data, backend):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    images, groups, padding = draw(0, 3), draw(1, 2), draw(0, 3)
    ins, outs = groups * draw(1, 40), groups * draw(1, 40)
    size = [max(3 - 2 * padding, 1) + draw(0, 12) for _ in range(2)]
    torch.manual_seed(draw(0, 1 << 20))
    tensors = (
        torch.randn(images, ins, *size, dtype=torch.float64, requires_grad=True),
        torch.randn(outs, ins // groups, 3, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(outs, dtype=torch.float64, requires_grad=True),
    )
    expected = F.conv2d(*tensors, padding=padding, groups=groups)
    got = conv2d(*tensors, padding=padding, groups=groups, algorithm=algorithm)
    compare_gradients(tensors, expected, got)


@pytest.mark.parametrize("algorithm", ["winograd", "winograd4"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_winograd_with_large_filters(algorithm, images, groups, backend):
    """Transformed filters that are too large to be stored, and more tiles than are kept."""
    tensors = (
        torch.randn(images, 256 * groups, 29, 27, dtype=torch.float64, requires_grad=True),
        torch.randn(232 * groups, 256, 3, 3, dtype=torch.float64, requires_grad=True) / 48,
        torch.randn(232 * groups, dtype=torch.float64, requires_grad=True),
    )
    expected = torch.relu(F.conv2d(*tensors, padding=1, groups=groups))
    options = dict(padding=1, groups=groups, activation="relu", algorithm=algorithm)
    got = conv2d(*tensors, **options)
    compare_gradients(tensors, expected, got)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    again = conv2d(*tensors, **options)
    torch.set_num_threads(threads)
    if backend == "cpp":
        torch.testing.assert_close(again, got, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("outs", "groups", "size", "algorithm"),
    [(16, 1, 220, "im2col"), (16, 1, 220, "winograd"), (8, 8, 300, "im2col")],
)
def test_gradients_of_images_beyond_what_is_staged_at_a_time(
    outs, groups, size, algorithm, backend
):
    """More than csrc/conv2d/segments.h has at a time: an image in strips, images in turns."""
    tensors = (
        torch.randn(2, 8, size, size, dtype=torch.float64),
        torch.randn(outs, 8 // groups, 3, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(outs, dtype=torch.float64, requires_grad=True),
    )
    expected = torch.relu(F.conv2d(*tensors, padding=1, groups=groups))
    options = {"padding": 1, "groups": groups, "algorithm": algorithm}
    compare_gradients(tensors[1:], expected, conv2d(*tensors, activation="relu", **options))


# How many times torch's RMS error each algorithm may make: docs/conv.md.
ERRORS = {"im2col": 2, "winograd": 2, "winograd4": 8}


@pytest.mark.parametrize("algorithm", ERRORS)
@pytest.mark.parametrize(("channels", "size"), [(64, 28), (256, 14)])
def test_errors_are_as_documented(algorithm, channels, size, backend):
    x = torch.randn(2, channels, size, size, requires_grad=True)
    weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).requires_grad_()
    grad = torch.randn(2, channels, size, size)

    def results(function, *tensors):
        output = function(*tensors)
        return output, *torch.autograd.grad(output, tensors, grad.to(output.dtype))

    exact = results(
        lambda x, w: F.conv2d(x, w, padding=1),
        *(t.detach().double().requires_grad_() for t in (x, weight)),
    )
    plain = results(lambda x, w: F.conv2d(x, w, padding=1), x, weight)
    got = results(lambda x, w: conv2d(x, w, padding=1, algorithm=algorithm), x, weight)
    for name, e, p, g in zip(("output", "input", "weight"), exact, plain, got, strict=True):
        torchs, ours = ((t.double() - e).square().mean().sqrt().item() for t in (p, g))
        # The gradient of the weight is F(3x3, 2x2)'s, whatever the tiles of the rest.
        most = 2 if name == "weight" else ERRORS[algorithm]
        assert ours <= most * torchs, f"{name}: {ours:.3g}, torch's {torchs:.3g}"


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("images", "channels", "height", "width", "outs"),
    [
        (2, 9, 33, 31, 20),  # blocks of pixels in one image and across two, mask bits at any place
        (1, 300, 40, 32, 34),  # too many channels for a pixel's to be used where they lie
        (2, 40, 16, 16, 260),  # more sums than a pass takes; whole tiles of the input's gradient
        (1, 40, 6, 6, 9),  # fewer pixels than sums: the gradient of the weight is not transposed
    ],
)
def test_1x1(images, channels, height, width, outs, layout, dtype, activation, backend):
    x = torch.randn(images, channels, height, width, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(outs, channels, 1, 1, dtype=dtype) / channels**0.5
    tensors = (x, weight, torch.randn(outs, dtype=dtype))
    grad = torch.randn(images, outs, height, width, dtype=dtype).to(memory_format=layout)

    def results(function, to):
        leaves = [t.detach().to(to).requires_grad_() for t in tensors]
        output = function(*leaves)
        return output, *torch.autograd.grad(output, leaves, grad.to(to))

    def ours(x, weight, bias):
        return conv2d(x, weight, bias, activation=activation)

    def torchs(x, weight, bias):
        z = F.conv2d(x, weight, bias)
        return z if activation == "none" else getattr(F, activation)(z)

    got, plain = results(ours, dtype), results(torchs, dtype)
    exact = results(torchs, torch.float64)
    for name, g, p, e in zip(("output", "input", "weight", "bias"), got, plain, exact, strict=True):
        errors = [(t.double() - e).square().mean().sqrt().item() for t in (g, p)]
        floor = 64 * torch.finfo(torch.float64).eps * e.square().mean().sqrt().item()
        assert errors[0] <= 2 * errors[1] + floor, f"{name}: {errors[0]:.3g}, {errors[1]:.3g}"
    if backend == "cpp":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        again = results(ours, dtype)
        torch.set_num_threads(threads)
        assert all(torch.equal(a, g) for a, g in zip(again, got, strict=True))


@pytest.mark.parametrize("algorithm", ["winograd", "winograd4"])
def test_winograd_is_the_cpus(algorithm):
    options = Options([1, 1], [1, 1], [1, 1], 1, "none", 0.0, algorithm, False)
    for name in ("cuda", "triton"):
        (reason,) = SPEC.unsupported(name, None, None, None, None, *options)
        assert reason == f"algorithm '{algorithm}' is the CPU's"
    assert not SPEC.unsupported("cpp", None, None, None, None, *options)


def test_library_is_the_cuda_backends():
    """And `explain` says whose convolution it is; on a CPU, left alone, it is torch's anyway."""
    options = Options([1, 1], [0, 0], [1, 1], 1, "relu", 0.0, "library", False)
    tensors = torch.randn(2, 3, 60, 60), torch.randn(80, 3, 3, 3), None, None
    for name in ("cpp", "triton"):
        reasons = SPEC.unsupported(name, *tensors, *options)
        assert reasons == ["algorithm 'library' is the CUDA backend's"]
    assert not SPEC.unsupported("cuda", *tensors, *options)
    assert SPEC.how("cuda", *tensors, *options).startswith("torch's convolution with Lamina's")
    (decision,) = lamina.explain(conv2d, *tensors[:2], activation="relu", algorithm="library")
    assert (decision.backend, decision.how) == ("reference", "")


def test_triton_refuses_what_lies_beyond_32_bits():
    pytest.importorskip("triton")
    from lamina.triton_kernels import conv2d, launch

    def taken(input, weight, padding=1):
        windows = [1, 1], [padding, padding], [1, 1]
        try:
            with launch.recording():
                conv2d.conv2d_forward(
                    input, weight, None, None, *windows, 1, "none", 0.0, "auto", False, False
                )
        except ValueError as error:
            if "2^31 elements" not in str(error):
                raise
            return False
        return True

    def refused(*tensors):
        return any("2^31" in r for r in conv2d.unsupported(*tensors, None, None, [1, 1], [1, 1]))

    weight = torch.empty(16, 512, 3, 3, device="meta")
    for height in (2000, 2048):
        input = torch.empty(1, 512, height, 2048, device="meta")
        assert taken(input, weight) is not refused(input, weight)
        assert taken(input, weight) is (height == 2000)
    many = torch.empty(1 << 11, 512, 3, 3, device="meta")
    assert not taken(torch.empty(1, 512, 1024, 1024, device="meta"), many)
    # Strides count, of an image and of the filters, and what they are multiplied by in the padding.
    memory = torch.empty(1 << 33, device="meta")
    for stride, padding, fits in ((1 << 28, 1, True), (1 << 29, 0, True), (1 << 29, 1, False)):
        input = memory.as_strided((2, 16, 3, 4), (1 << 32, 1, 16, stride))
        filters = torch.empty(4, 16, 3, 3, device="meta")
        assert taken(input, filters, padding) is fits
    for stride, fits in ((1 << 27, True), (1 << 28, False)):
        filters = memory.as_strided((9, 16, 3, 3), (stride, 9, 3, 1))
        image = torch.empty(1, 16, 5, 5, device="meta")
        assert taken(image, filters) is fits is not refused(image, filters)


def test_batch_norm_folds_into_the_convolution(backend):
    conv, norm = lamina.Conv2dReLU(3, 6, 3, padding=1), nn.BatchNorm2d(6).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 3, 7, 7)
    expected = torch.relu(norm(F.conv2d(x, conv.weight, conv.bias, padding=1)))
    weight, bias = lamina.functional.fold_batch_norm(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    )
    torch.testing.assert_close(conv2d(x, weight, bias, padding=1, activation="relu"), expected)
    with pytest.raises(ValueError, match=r"running_var must have shape \(6,\), got \(3,\)"):
        lamina.functional.fold_batch_norm(
            conv.weight, None, norm.running_mean, norm.running_var[:3]
        )
    with pytest.raises(ValueError, match=r"shift must have shape \(6,\), got \(3,\)"):
        lamina.functional.fold_batch_norm(
            conv.weight, None, norm.running_mean, norm.running_var, None, norm.bias[:3]
        )
    with pytest.raises(ValueError, match="out_channels first, got a scalar"):
        lamina.functional.fold_batch_norm(torch.ones(()), None, norm.running_mean, norm.running_var)


@pytest.mark.skipif(bool(lamina.backends.missing["cpp"]), reason="the C++ module is not built")
@pytest.mark.parametrize(
    ("isa", "images", "channels", "size", "layout", "chosen"),
    [
        ("avx512", 8, 64, 28, torch.contiguous_format, "cpp"),
        ("avx2", 8, 64, 28, torch.contiguous_format, "reference"),
        ("avx512", 7, 64, 28, torch.contiguous_format, "reference"),
        ("avx512", 8, 63, 28, torch.contiguous_format, "reference"),
        ("avx512", 8, 64, 26, torch.contiguous_format, "reference"),
        ("avx512", 8, 64, 28, torch.channels_last, "reference"),
    ],
)
def test_strided_3x3_goes_where_it_was_measured_faster(
    monkeypatch, isa, images, channels, size, layout, chosen
):
    monkeypatch.setattr(sys.modules["lamina.layers.conv2d"], "ISA", isa)
    input = torch.randn(images, channels, size, size).contiguous(memory_format=layout)
    weight = torch.randn(64, channels, 3, 3)
    (decision,) = lamina.explain(lamina.functional.conv2d, input, weight, stride=2, padding=1)
    assert decision.backend == chosen

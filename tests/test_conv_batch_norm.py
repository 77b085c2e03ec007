"""ConvBatchNorm2d is conv, norm and activation, whatever the mode, layout and dtype."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lamina


@pytest.fixture(params=["reference", "cpp"])
def backend(request):
    if lamina.backends.BACKENDS.get(request.param, lamina.backends.BACKENDS["cpp"]).missing:
        pytest.skip("no C++ module")
    with lamina.use_backend(request.param):
        yield request.param


def pair(dtype=torch.float64, **kwargs):
    """A layer with lived-in statistics, and the torch modules that it stands for."""
    layer = lamina.ConvBatchNormReLU2d(5, 6, 3, padding=1, dtype=dtype, eps=1e-3, **kwargs)
    plain = nn.ModuleDict(
        {
            "conv": nn.Conv2d(5, 6, 3, padding=1, bias="bias" in kwargs, dtype=dtype),
            "bn": nn.BatchNorm2d(6, eps=1e-3, dtype=dtype),
        }
    )
    for tensor in (layer.bn.weight, layer.bn.bias, layer.bn.running_mean, layer.bn.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


def compose(plain, x, residual=None):
    output = plain["bn"](plain["conv"](x))
    return F.relu(output if residual is None else output + residual)


def image(dtype=torch.float64):
    return torch.randn(2, 5, 7, 6, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kwargs", [{}, {"bias": True}], ids=["no bias", "bias"])
@pytest.mark.parametrize("added", [False, True], ids=["plain", "residual"])
def test_is_the_composition(training, kwargs, added, backend):
    layer, plain = pair(**kwargs)
    layer.train(training), plain.train(training)
    x = image()
    inputs = (x, torch.randn(2, 6, 7, 6, dtype=torch.float64, requires_grad=True))[: 1 + added]
    expected, got = compose(plain, *inputs), layer(*inputs)
    torch.testing.assert_close(got, expected)
    grad = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(got, [*inputs, *layer.parameters()], grad),
        torch.autograd.grad(expected, [*inputs, *plain.parameters()], grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    for name, buffer in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], buffer)


def test_frozen_parameters(backend):
    """With the parameters frozen, evaluation gives the input's gradient and no other."""
    layer, plain = pair()
    layer.eval().requires_grad_(False), plain.eval().requires_grad_(False)
    x = image()
    grad = torch.randn(2, 6, 7, 6, dtype=torch.float64)
    (got,) = torch.autograd.grad(layer(x), x, grad)
    (expected,) = torch.autograd.grad(compose(plain, x), x, grad)
    torch.testing.assert_close(got, expected)
    assert not layer(x.detach()).requires_grad


def test_frozen_norm_in_training(backend):
    """A norm in evaluation inside a layer in training, as fine-tuning has it, stays as it is."""
    layer, plain = pair()
    layer.bn.eval(), plain["bn"].eval()
    before = layer.bn.running_mean.clone()
    x = image()
    torch.testing.assert_close(layer(x), compose(plain, x))
    torch.testing.assert_close(layer.bn.running_mean, before, rtol=0, atol=0)


def test_gradgradcheck_in_evaluation(backend):
    layer = lamina.ConvBatchNorm2d(2, 2, 2, activation="tanh", dtype=torch.float64).eval()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))
    assert torch.autograd.gradgradcheck(call, (x, *parameters))


def test_no_change_is_missed(backend):
    """Nothing is remembered: also changes through .data, which no version counter sees, count."""
    layer, plain = pair()
    layer.eval(), plain.eval()
    x = image()
    layer(x)
    for module in (layer.conv, plain["conv"]):
        module.weight.data.mul_(1.5)
    torch.testing.assert_close(layer(x), compose(plain, x))
    for module in (layer.bn, plain["bn"]):
        module.running_mean.add_(1)
    torch.testing.assert_close(layer(x), compose(plain, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moves_between_dtypes(dtype, backend):
    layer, plain = pair(torch.float32)
    layer.eval()(image(torch.float32))
    layer.to(dtype), plain.eval().to(dtype)
    x = image(dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    got = layer(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, compose(plain, x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variance", [1.0, 1e-5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_statistics_are_folded_in_float32(dtype, variance):
    """The error against float64 is at most twice that of torch's layers."""
    layer = lamina.ConvBatchNorm2d(16, 32, 3).eval()
    layer.bn.running_var.uniform_(0.5, 1.5).mul_(variance)
    layer.bn.running_mean.normal_()
    layer = layer.to(dtype).requires_grad_(False)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(2, 16, 12, 12, dtype=dtype) * variance**0.5
    wanted = exact.bn(exact.conv(x.double()))
    ours, torchs = (
        (found.double() - wanted).square().mean().sqrt()
        for found in (layer(x), layer.bn(F.conv2d(x, layer.conv.weight)))
    )
    assert ours <= 2 * torchs


def test_a_norm_in_float32_beside_bfloat16(backend):
    layer, plain = pair(torch.bfloat16)
    layer.bn.float(), plain["bn"].float()
    x = image(torch.bfloat16)
    got, expected = layer.eval()(x), compose(plain.eval(), x)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


def test_copies_pickles_and_checkpoints(backend):
    layer, plain = pair()
    assert list(layer.state_dict()) == list(plain.state_dict())
    layer.eval()
    x = image()
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for copied in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        torch.testing.assert_close(copied(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_whole(training, backend):
    layer, _ = pair()
    layer.train(training)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = image()
    got, expected = compiled(x), layer(x)
    torch.testing.assert_close(got, expected)
    for a, b in zip(
        torch.autograd.grad(got.sum(), [x, *twin.parameters()]),
        torch.autograd.grad(expected.sum(), [x, *layer.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_folded_is_a_plain_convolution(mode, backend):
    layer, _ = pair(padding_mode=mode)
    layer.eval()
    folded = layer.folded()
    assert type(folded) is lamina.Conv2d
    x = image()
    torch.testing.assert_close(folded(x), layer(x))
    with torch.no_grad():
        folded.weight.zero_()
    assert layer.conv.weight.abs().min() > 0


def test_without_running_statistics(backend):
    """Such a norm uses the batch's own also in evaluation, and cannot be folded."""
    layer, plain = pair()
    for module in (layer, plain):
        bn = module.bn if module is layer else plain["bn"]
        bn.running_mean = bn.running_var = None
        module.eval()
    x = image()
    torch.testing.assert_close(layer(x), compose(plain, x))
    with pytest.raises(ValueError, match="folded needs a norm with track_running_stats=True"):
        layer.folded()


def test_bad_arguments():
    with pytest.raises(ValueError, match="activation is 'rleu'; the fused ones are"):
        lamina.ConvBatchNorm2d(1, 1, 1, activation="rleu")
    with pytest.raises(TypeError, match=r"multiple values for .*'activation'"):
        lamina.ConvBatchNormReLU2d(1, 1, 1, activation="tanh")


@pytest.mark.parametrize("training", [True, False])
def test_bad_residual(training, backend):
    """Refused before the batch is counted, in words that do not depend on the mode."""
    layer = lamina.ConvBatchNorm2d(2, 3, 3).train(training)
    x, residual = torch.randn(4, 2, 9, 9), torch.randn(4, 3, 7, 7)
    for bad, error, match in (
        (residual[:, :, :1, :1], ValueError, r"shape of the result, \(4, 3, 7, 7\), got"),
        (residual.double(), TypeError, "residual is torch.float64 and input torch.float32"),
        ([0.0], TypeError, "residual must be a Tensor, got list"),
    ):
        with pytest.raises(error, match=match):
            layer(x, bad)
    assert layer.bn.num_batches_tracked == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, residual).dtype == torch.bfloat16


def test_arguments_of_the_norm():
    bn = lamina.ConvBatchNorm2d(2, 3, 3, eps=0.5, momentum=0.25).bn
    assert (bn.eps, bn.momentum) == (0.5, 0.25)
    assert lamina.ConvBatchNorm2d(2, 3, 3).conv.bias is None
    assert "activation='tanh'" in repr(lamina.ConvBatchNorm2d(2, 3, 3, activation="tanh"))


def test_folded_keeps_every_argument(backend):
    layer = lamina.ConvBatchNorm2d(
        *(4, 6, 3), stride=2, padding=1, dilation=2, groups=2, activation="tanh", algorithm="im2col"
    ).double()
    nn.init.uniform_(layer.bn.running_var, 0.5, 1.5)
    assert layer.folded().training
    folded = layer.eval().folded()
    assert not folded.training
    assert folded.algorithm == "im2col"
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(folded(x), layer(x))


def test_a_norm_in_training_is_not_folded():
    """Where `bn` alone is in training, it uses the statistics of the batch."""
    layer = lamina.ConvBatchNorm2d(2, 3, 3).eval()
    layer.bn.train()
    output = layer(5 + torch.randn(8, 2, 9, 9))
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    assert layer.bn.num_batches_tracked == 1

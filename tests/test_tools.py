"""What docs/tools.md says of torch's tools that look into layers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import fusion, parametrizations, prune
from torch.utils import mkldnn

import lamina

PAGE = Path(__file__).resolve().parents[1] / "docs/tools.md"


def norm(kind: type[nn.Module], features: int) -> nn.Module:
    """A batch norm in evaluation that does something."""
    made = kind(features).eval()
    for tensor in (made.running_mean, made.running_var, made.weight.data, made.bias.data):
        tensor.uniform_(0.5, 2)
    return made


def agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_examples_run():
    for example in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(example, {})


@pytest.mark.parametrize(
    ("options", "right"),
    [({}, True), ({"activation": "relu"}, False), ({"weight_layout": "in_out"}, False)],
)
def test_torchs_fold_of_linear(options, right):
    """fold_batch_norm is right where torch's own is not: see test_the_examples_run."""
    layer, bn, x = lamina.Linear(8, 8, **options).eval(), norm(nn.BatchNorm1d, 8), torch.randn(4, 8)
    assert agree(fusion.fuse_linear_bn_eval(layer, bn)(x), bn(layer(x))) == right


@pytest.mark.parametrize(("layer", "right"), [(lamina.Conv2d, True), (lamina.Conv2dReLU, False)])
def test_torchs_fold_of_conv2d(layer, right):
    conv, bn, x = layer(3, 4, 3).eval(), norm(nn.BatchNorm2d, 4), torch.randn(2, 3, 8, 8)
    assert agree(fusion.fuse_conv_bn_eval(conv, bn)(x), bn(conv(x))) == right
    with pytest.raises(AssertionError, match="did not find fuser method"):
        quantization.fuse_modules(nn.Sequential(conv, bn), [["0", "1"]])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_quantization_passes_the_layers_by():
    model, x = nn.Sequential(lamina.LinearReLU(8, 8), nn.Linear(8, 8)).eval(), torch.randn(4, 8)
    quantized = quantization.quantize_dynamic(model, {nn.Linear})
    assert type(quantized[0]) is lamina.LinearReLU
    assert type(quantized[1]) is not nn.Linear
    assert torch.equal(quantized[0](x), model[0](x))


def test_mkldnn_drops_the_activation():
    layer, x = lamina.LinearReLU(8, 8).eval(), torch.randn(4, 8)
    with torch.no_grad():
        found = mkldnn.to_mkldnn(layer)(x.to_mkldnn()).to_dense()
    assert agree(found, nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    "tool",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
    ],
    ids=["weight norm", "spectral norm", "orthogonal", "pruned", "pruned rows"],
)
@pytest.mark.parametrize(
    ("ours", "torchs", "x"),
    [
        (lamina.Linear, nn.Linear, torch.randn(128, 64, dtype=torch.float64)),
        (lamina.Conv2d, nn.Conv2d, torch.randn(4, 64, 12, 12, dtype=torch.float64)),
    ],
)
def test_what_computes_the_weight_anew(ours, torchs, x, tool):
    """Values and the gradients of what the weight is computed from. In float64: two results in
    float32 differ by their roundings, now and then by more than any bound for most draws."""
    found = []
    for kind, last in ((ours, {"activation": "relu"}), (torchs, {})):
        torch.manual_seed(0)
        layer = kind(64, 96, *([3] if x.dim() == 4 else []), **last).double()
        tool(layer)
        output = layer(x).relu()
        names, parameters = zip(*layer.named_parameters())
        gradients = torch.autograd.grad(output.square().mean(), parameters)
        found.append({"output": output, **dict(zip(names, gradients))})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-10, atol=1e-12)

"""Peers of linear: eager, compiled, and the fused calls that torch has for inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.activations import ACTIVATIONS
from lamina.bench.peers import Peer, Setting, alternatives, compiled
from lamina.spec import Sample


def _eager(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    function, parameter = ACTIVATIONS[activation]
    return function(F.linear(input, weight, bias), parameter)


def _onednn(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, activation, [], "")


def _addmm(input: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    return torch._addmm_activation(bias, input, weight.t())


def _only_relu(sample: Sample) -> str | None:
    input, _, bias = sample.args
    if sample.kwargs["activation"] != "relu" or bias is None or input.dim() != 2:
        return "takes relu, a bias and a 2-D input only"
    return None


def _onednn_refuses(sample: Sample) -> str | None:
    if sample.args[0].dtype == torch.float64:
        return "oneDNN has no float64"
    return _only_relu(sample)


class _Layer(torch.nn.Module):
    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(sample.args[1].detach())
        self.bias = torch.nn.Parameter(sample.args[2].detach())
        self.activation = sample.kwargs["activation"]

    def forward(self, input: Tensor) -> Tensor:
        return _eager(input, self.weight, self.bias, self.activation)


def _frozen(sample: Sample, setting: Setting) -> Callable[..., Tensor]:
    layer = compiled(_Layer(sample).eval(), setting, freezing=True, max_autotune=True)
    return lambda input, *_, **__: layer(input)


PEERS = (
    *alternatives("eager", _eager),
    Peer("oneDNN fused", lambda *_: _onednn, ("forward",), "cpu", _onednn_refuses),
    Peer("_addmm_activation", lambda *_: _addmm, ("forward",), "cuda", _only_relu),
    Peer(
        "frozen",
        _frozen,
        ("forward",),
        "cpu",
        apart="weights are constants that torch.compile packed ahead of the timing",
    ),
)

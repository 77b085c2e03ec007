"""Convolution, batch normalisation (Ioffe, Szegedy 2015) and activation as one layer.

y = act(norm(conv(x)) + residual). Where the norm uses its running statistics, it is folded into the
convolution (lamina.layers.fold_batch_norm), so that one fused call computes the whole layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lamina.activations import ACTIVATIONS, Activation, parse_activation
from lamina.checks import autocast_dtype, cast
from lamina.layers.conv2d_checks import check_residual
from lamina.layers.conv2d_modules import Conv2d
from lamina.layers.fold_batch_norm import fold_batch_norm
from lamina.scripting import refuse_scripting

torch.fx.wrap("fold_batch_norm")


class ConvBatchNorm2d(nn.Module):
    """`nn.Conv2d`, `nn.BatchNorm2d` and an activation: the parts are `conv` and `bn`.

    Arguments are those of `Conv2d`, with bias=False for a default since the norm has one, and
    `eps` and `momentum` of the norm. The state_dict holds `conv.weight`, `bn.weight`, `bn.bias`,
    `bn.running_mean`, ...

    forward(input, residual) adds `residual`, of the shape of the result, before the activation.
    Where `bn` is in evaluation and has running statistics, they are folded into the convolution at
    every call: gradients reach every parameter through the fold, and no change of a parameter can
    be missed. `conv` and `bn` are then not called as modules, and their hooks do not run. For
    inference with constant parameters, `folded()` gives the convolution once and for all.
    """

    __prepare_scriptable__ = refuse_scripting

    def __init__(
        self,
        *args: Any,
        bias: bool = False,
        activation: Activation = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(*args, bias=bias, **kwargs)
        parse_activation(type(self).__name__, activation)
        weight = self.conv.weight
        self.bn = nn.BatchNorm2d(
            self.conv.out_channels, eps, momentum, device=weight.device, dtype=weight.dtype
        )
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self.bn.training and self.bn.running_mean is not None:
            weight, bias = self._fold()
            return self.conv._conv_forward(input, weight, bias, self.activation, residual)
        output = self.conv(input)
        if residual is not None:
            low = autocast_dtype(input)
            residual = residual if low is None else cast(residual, low)
            check_residual(residual, output, output.shape)
        output = self.bn(output)  # Which may count the batch: what is wrong was refused before.
        output = output if residual is None else output + residual
        name, parameter, after = parse_activation("ConvBatchNorm2d", self.activation)
        output = ACTIVATIONS[name][0](output, parameter)
        return after(output) if after else output

    def _fold(self) -> tuple[Tensor, Tensor]:
        bn = self.bn
        statistics = (bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)
        return fold_batch_norm(self.conv.weight, self.conv.bias, *statistics)

    @torch.no_grad()
    def folded(self) -> Conv2d:
        """The convolution that this layer is in evaluation, with parameters of its own.

        Raises ValueError if the norm keeps no running statistics.
        """
        if self.bn.running_mean is None:
            raise ValueError("ConvBatchNorm2d: folded needs a norm with track_running_stats=True")
        conv, (weight, bias) = self.conv, self._fold()
        layer = Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            padding_mode=conv.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
            activation=self.activation,
            algorithm=conv.algorithm,
        )
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        shown = self.activation is not None and not isinstance(self.activation, nn.Module)
        return f"activation={self.activation!r}" * shown


class ConvBatchNormReLU2d(ConvBatchNorm2d):
    """`ConvBatchNorm2d` with activation="relu"."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, activation="relu", **kwargs)

"""conv2d as modules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina.activations import Activation, parse_activation
from lamina.checks import as_int
from lamina.layers.conv2d import conv2d
from lamina.layers.conv2d_checks import check_algorithm, is_channels_last
from lamina.scripting import refuse_scripting
from lamina.windows import Pair, as_pair

torch.fx.wrap("conv2d")


@torch.fx.wrap
def _padded(input: Tensor, padding: list[int], mode: str) -> Tensor:
    """F.pad in the layout of the input: the circular mode forgets it."""
    kept = input.dim() == 4 and is_channels_last(input)
    layout = torch.channels_last if kept else torch.contiguous_format
    return F.pad(input, padding, mode=mode).contiguous(memory_format=layout)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` and the activation after it, as one layer.

    Arguments, initialisation and state_dict are nn.Conv2d's. `activation` and `algorithm` are those
    of `conv2d`, and so are shapes and errors. forward(input, residual) adds `residual` before the
    activation.

    torch.nn.utils.fusion.fuse_conv_bn_eval knows of no activation and folds past it: docs/tools.md.
    `ConvBatchNorm2d` has the norm before the activation, and folds.
    """

    __prepare_scriptable__ = refuse_scripting

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation = None,
        algorithm: str = "auto",
    ) -> None:
        parse_activation("Conv2d", activation)
        check_algorithm("Conv2d", algorithm)
        in_channels = as_int("Conv2d", "in_channels", in_channels, 1)
        out_channels = as_int("Conv2d", "out_channels", out_channels, 1)
        groups = as_int("Conv2d", "groups", groups, 1)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups must divide in_channels {in_channels} and out_channels "
                f"{out_channels}, got {groups}"
            )
        kernel_size = as_pair("Conv2d", "kernel_size", kernel_size, 1)
        stride = as_pair("Conv2d", "stride", stride, 1)
        dilation = as_pair("Conv2d", "dilation", dilation, 1)
        # Less than none, as F.pad has it, cuts off; torch knows which words are paddings.
        if padding_mode == "zeros" and not isinstance(padding, str):
            padding = as_pair("Conv2d", "padding", padding, 0)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.activation = activation
        self.algorithm = algorithm

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias, self.activation, residual)

    def _conv_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The layer with another weight, bias and activation, as a folded batch norm needs it."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = _padded(input, self._reversed_padding_repeated_twice, self.padding_mode)
            padding = 0
        return conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=activation,
            residual=residual,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            text += f", activation={self.activation!r}"
        return text + (f", algorithm={self.algorithm!r}" * (self.algorithm != "auto"))


class Conv2dReLU(Conv2d):
    """`Conv2d` with activation="relu"."""

    def __init__(
        self,
        *args: Any,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, device=device, dtype=dtype, activation="relu", **kwargs)

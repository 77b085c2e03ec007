"""Multilayer perceptron: linear layers, each but the last with its activation fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lamina.activations import Activation
from lamina.layers.linear_modules import Linear


class MLP(nn.Sequential):
    """[..., in_features] to [..., out_features] through `hidden` layers of the given widths.

    activation: of every layer but the last, whose outputs are plain scores; see `lamina.Linear`
    for its forms, for what may be drawn as weights (`reset_parameters`), and for the errors raised.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        activation: Activation = "relu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(hidden, Sequence) or isinstance(hidden, str):
            raise TypeError(f"MLP: hidden must be a sequence of ints, got {hidden!r}")
        widths = (in_features, *hidden, out_features)
        activations = [activation] * len(hidden) + [None]
        super().__init__(
            *(
                Linear(ins, outs, bias, act, device=device, dtype=dtype)
                for ins, outs, act in zip(widths, widths[1:], activations)
            )
        )

    def reset_parameters(self, init: str = "uniform") -> None:
        """Draw new parameters in every layer; see `lamina.Linear.reset_parameters`."""
        for layer in self:
            layer.reset_parameters(init)

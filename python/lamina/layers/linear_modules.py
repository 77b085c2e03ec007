"""linear as modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lamina.activations import Activation, parse_activation
from lamina.checks import as_int
from lamina.layers.linear import linear
from lamina.layouts import LayoutInMetadata
from lamina.scripting import refuse_scripting

torch.fx.wrap("linear")


class Linear(LayoutInMetadata, nn.Linear):
    """`torch.nn.Linear` and the activation after it, as one layer.

    The arguments, the initialisation and the state_dict (weight, bias) are nn.Linear's; a weight
    of layout "in_out" is the transpose. See `linear` for activations, shapes and errors.

    load_state_dict raises RuntimeError for a weight of the other layout: by its shape, and where it
    is square by the metadata of the state_dict (`lamina.layouts`). Metadata that names no layout is
    nn.Linear's, and so "out_in".

    Tools that take the weight out of an nn.Linear, such as torch.nn.utils.fusion's folds of batch
    norms, know neither of an activation nor of "in_out", and are silently wrong: docs/tools.md.
    """

    _unnamed_layout = "out_in"
    __prepare_scriptable__ = refuse_scripting

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: Activation = None,
        weight_layout: str = "out_in",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's draws a weight of its own layout
        self.in_features = as_int("Linear", "in_features", in_features, 0)
        self.out_features = as_int("Linear", "out_features", out_features, 0)
        if weight_layout not in ("out_in", "in_out"):
            raise ValueError(
                f"Linear: weight_layout is {weight_layout!r}; it must be 'out_in' or 'in_out'"
            )
        parse_activation("Linear", activation)
        self.activation = activation
        self.weight_layout = weight_layout
        shape = self._weight_shape(weight_layout)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _weight_shape(self, layout: str) -> list[int]:
        shape = [self.out_features, self.in_features]
        return shape if layout == "out_in" else shape[::-1]

    def reset_parameters(self, init: str = "uniform") -> None:
        """Draw new parameters: "uniform" as nn.Linear does, "normal" as the articles do.

        "normal" is a standard normal weight and a bias of 0.01.
        """
        if init == "normal":
            nn.init.normal_(self.weight)
            if self.bias is not None:
                nn.init.constant_(self.bias, 0.01)
            return
        if init != "uniform":
            raise ValueError(f"Linear: init is {init!r}; it must be 'uniform' or 'normal'")
        # Drawn as [out, in] whatever the layout, so that one seed gives one function.
        matrix = self.weight.new_empty(self.out_features, self.in_features)
        nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        with torch.no_grad():
            self.weight.copy_(matrix if self.weight_layout == "out_in" else matrix.t())
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return linear(
            input, self.weight, self.bias, self.activation, weight_layout=self.weight_layout
        )

    def extra_repr(self) -> str:
        text = (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            text += f", activation={self.activation!r}"
        return text + (f", weight_layout={self.weight_layout!r}" * (self.weight_layout != "out_in"))


class LinearReLU(Linear):
    """`Linear` with activation="relu"."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_layout: str = "out_in",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, "relu", weight_layout, device, dtype)

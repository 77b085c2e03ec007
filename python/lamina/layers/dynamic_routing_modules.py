"""dynamic_routing as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lamina.checks import as_int, check_number
from lamina.layers.dynamic_routing import dynamic_routing
from lamina.layers.routing_arguments import check_layout, oied_view
from lamina.layers.squash import check_squash
from lamina.layouts import LayoutInMetadata
from lamina.scripting import refuse_scripting

torch.fx.wrap("dynamic_routing")


class DynamicRouting(LayoutInMetadata):
    """A layer of `out_capsules` capsules of dimension `out_dim`, routed by agreement.

    Parameters: weight (in the shape of `weight_layout`, so that a state_dict of another
    implementation fits; a layout without i is shared by the in-capsules; a state_dict that names
    another layout is refused: `lamina.layouts`), bias [O, E] with
    bias=True, prior [I, O] with prior=True: learned routing logits. The weight is drawn from
    N(0, init_std^2), in the order [O, I, E, D] whatever the layout; the bias starts at 0.1, as the
    authors' does, the prior at 0. The other options are those of `dynamic_routing`.
    """

    __prepare_scriptable__ = refuse_scripting

    def __init__(
        self,
        in_capsules: int,
        out_capsules: int,
        in_dim: int,
        out_dim: int,
        iterations: int = 3,
        *,
        bias: bool = False,
        prior: bool = False,
        coupling_dim: str = "out",
        detach_votes: bool = False,
        squash: str = "exact",
        eps: float = 0.0,
        weight_layout: str = "oied",
        accumulate: bool = True,
        scale: float = 1.0,
        leaky: bool = False,
        init_std: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_capsules = as_int("DynamicRouting", "in_capsules", in_capsules, 1)
        self.out_capsules = as_int("DynamicRouting", "out_capsules", out_capsules, 1)
        self.in_dim = as_int("DynamicRouting", "in_dim", in_dim, 1)
        self.out_dim = as_int("DynamicRouting", "out_dim", out_dim, 1)
        self.iterations = as_int("DynamicRouting", "iterations", iterations, 1)
        check_squash("DynamicRouting", "squash", squash, eps)
        check_number("DynamicRouting", "scale", scale)
        check_number("DynamicRouting", "init_std", init_std)
        check_layout("DynamicRouting", weight_layout)
        if coupling_dim not in ("out", "in"):
            raise ValueError(
                f"DynamicRouting: coupling_dim is {coupling_dim!r}; it must be 'out' or 'in'"
            )
        self.weight_layout, self.init_std = weight_layout, init_std
        self.options = {
            "coupling_dim": coupling_dim,
            "detach_votes": detach_votes,
            "squash": squash,
            "eps": eps,
            "accumulate": accumulate,
            "scale": scale,
            "leaky": leaky,
        }
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(self._weight_shape(weight_layout), **factory))
        oied_view("DynamicRouting", self.weight, weight_layout, self.out_capsules)
        shapes = {
            "bias": (self.out_capsules, self.out_dim),
            "prior": (self.in_capsules, self.out_capsules),
        }
        for name, wanted in (("bias", bias), ("prior", prior)):
            parameter = nn.Parameter(torch.empty(shapes[name], **factory)) if wanted else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def _weight_shape(self, layout: str) -> list[int]:
        ins, outs, in_dim, out_dim = self.in_capsules, self.out_capsules, self.in_dim, self.out_dim
        sizes = {"o": outs, "i": ins, "e": out_dim, "d": in_dim, "x": outs * out_dim, "1": 1}
        # What is no layout gets some shape too: oied_view says what a layout looks like.
        return [sizes.get(name, 0) for name in layout.replace("(oe)", "x")]

    def reset_parameters(self) -> None:
        """Draw a new weight; bias and prior go back to where they start."""
        with torch.no_grad():
            view = oied_view("DynamicRouting", self.weight, self.weight_layout, self.out_capsules)
            view.copy_(torch.empty_like(view, memory_format=torch.contiguous_format).normal_())
            view.mul_(self.init_std)
        if self.bias is not None:
            nn.init.constant_(self.bias, 0.1)
        if self.prior is not None:
            nn.init.zeros_(self.prior)

    def forward(
        self, u: Tensor, mask: Tensor | None = None, return_couplings: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        return dynamic_routing(
            u,
            self.weight,
            iterations=self.iterations,
            bias=self.bias,
            prior=self.prior,
            mask=mask,
            weight_layout=self.weight_layout,
            out_capsules=self.out_capsules,
            return_couplings=return_couplings,
            **self.options,
        )

    def extra_repr(self) -> str:
        text = (
            f"in_capsules={self.in_capsules}, out_capsules={self.out_capsules}, "
            f"in_dim={self.in_dim}, out_dim={self.out_dim}, iterations={self.iterations}, "
            f"bias={self.bias is not None}, prior={self.prior is not None}, "
            f"weight_layout={self.weight_layout!r}"
        )
        return text + "".join(f", {name}={value!r}" for name, value in self.options.items())

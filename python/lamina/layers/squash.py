"""squash: a vector's direction with a length between 0 and 1.

    v = f(q) s,  q = |s|^2 over the last dimension,  n = |s|
    exact     f = n / (1 + q)                       (Sabour, Frosst, Hinton 2017, equation 1)
    sqrt_eps  f = q / (1 + q) / sqrt(q + eps)
    norm_eps  f = q / (1 + q) / (n + eps)
    exp       f = (1 - e^-n) / (n + eps)

`eps` is not neutral: with norm_eps at n = 1e-5, an eps of 1e-5 halves the result. "exact" needs
none: at s = 0 value and gradient are 0 here, where plain autograd gives NaN. Saved: the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lamina.backends import choose, kernels, wants_grad
from lamina.checks import check_floating, check_number
from lamina.double_backward import partial_gradients
from lamina.fakes import fake
from lamina.scripting import refuse_scripting
from lamina.spec import Spec

KINDS = ("exact", "sqrt_eps", "norm_eps", "exp")


def reference(input: Tensor, kind: str = "exact", eps: float = 0.0) -> Tensor:
    """The definition, in float32 at least: the square of 256 is no float16."""
    s = input.to(torch.promote_types(input.dtype, torch.float32))
    q = s.square().sum(-1, keepdim=True)
    at_zero = q == 0
    # The norm's derivative is infinite at 0: keep that branch out of the graph.
    q = torch.where(at_zero, 1.0, q)
    n = q.sqrt()
    if kind == "exact":
        f = n / (1 + q)
    elif kind == "sqrt_eps":
        f = q / (1 + q) / (q + eps).sqrt()
    elif kind == "norm_eps":
        f = q / (1 + q) / (n + eps)
    else:
        f = -(-n).expm1() / (n + eps)
    limit = 1.0 if kind == "exp" and eps == 0 else 0.0
    return (torch.where(at_zero, limit, f) * s).to(input.dtype)


def check_squash(op: str, name: str, kind: object, eps: object) -> None:
    """ValueError for an unknown squash or a negative eps, TypeError for an eps of another type."""
    if kind not in KINDS:
        raise ValueError(f"{op}: {name} is {kind!r}; it must be one of {', '.join(KINDS)}")
    check_number(op, "eps", eps)
    if not eps >= 0:
        raise ValueError(f"{op}: eps must not be negative, got {eps}")


@fake("squash_forward")
def _forward_fake(input: Tensor, kind: str, eps: float) -> Tensor:
    return input.new_empty(input.shape)


@fake("squash_backward")
def _backward_fake(grad: Tensor, input: Tensor, kind: str, eps: float) -> Tensor:
    return input.new_empty(input.shape)


class _Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, kind: str, eps: float, backend: str) -> Tensor:
        ctx.save_for_backward(input)
        ctx.kind, ctx.eps, ctx.backend = kind, eps, backend
        return kernels("squash", backend).forward(input, kind, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        (input,) = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            (found,) = partial_gradients(
                lambda s: reference(s, ctx.kind, ctx.eps), [input], [True], grad
            )
            return found, None, None, None
        found = kernels("squash", ctx.backend).backward(grad, input, ctx.kind, ctx.eps)
        return found, None, None, None


@torch.fx.wrap
def squash(
    input: Tensor, kind: str = "exact", eps: float = 0.0, *, backend: str | None = None
) -> Tensor:
    """Shrink every vector of the last dimension to a length between 0 and 1.

    Args:
        input: [..., E].
        kind: "exact", "sqrt_eps", "norm_eps" or "exp"; see the module's docstring.
        eps: what the last three add against a division by zero.
        backend: see lamina.backends; None lets Lamina choose.

    Returns a contiguous tensor of the shape and dtype of `input`; bfloat16 and float16 are computed
    with in float32. Raises TypeError if `input` is
    not a floating-point tensor, ValueError if it has no dimension or a name does not fit.
    """
    check_floating("squash", "input", input)
    check_squash("squash", "kind", kind, eps)
    if input.dim() == 0:
        raise ValueError("squash: input must have at least 1 dimension, got a scalar")
    chosen = choose(SPEC, backend, (input,), (kind, eps))
    if chosen == "reference":
        return reference(input, kind, eps)
    if wants_grad(input):
        return _Squash.apply(input, kind, float(eps), chosen)
    return kernels("squash", chosen).forward(input, kind, float(eps))


class Squash(nn.Module):
    """The layer of `squash`."""

    __prepare_scriptable__ = refuse_scripting

    def __init__(self, kind: str = "exact", eps: float = 0.0) -> None:
        super().__init__()
        check_squash("Squash", "kind", kind, eps)
        self.kind = kind
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        return squash(input, self.kind, self.eps)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, eps={self.eps}"


SPEC = Spec(
    name="squash",
    functional=squash,
    reference=reference,
    dtypes=(torch.float64, torch.float32),
)

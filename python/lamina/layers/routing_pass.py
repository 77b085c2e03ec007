"""routing_pass: one step of dot-product routing, the primitive behind dynamic routing.

    votes_ij = W_ij u_i;  c = softmax(prior + scale <votes_ij, v_j>) * mask_i
    s_j = sum_i c_ij votes_ij

Inverted dot-product attention, k-means-like and self-attention routing are this step and ordinary
PyTorch on small [B, O, E] tensors. The votes [B, I, O, E] are not kept. Saved: inputs and s.

Shapes: u [B, I, D] (in-capsules), weight [O, I, E, D] in any layout, or [O, E, D] where all
in-capsules share it, v and s [B, O, E].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lamina.backends import choose, kernels, wants_grad
from lamina.checks import (
    as_int,
    autocast_dtype,
    cast,
    check_alike,
    check_floating,
    check_number,
    without_autocast,
)
from lamina.double_backward import partial_gradients
from lamina.fakes import fake, flops
from lamina.spec import Spec


def votes_of(u: Tensor, weight: Tensor) -> Tensor:
    """[B, I, O, E] from u [B, I, D] and weight [O, I, E, D] or [O, E, D]."""
    equation = "bid,oied->bioe" if weight.dim() == 4 else "bid,oed->bioe"
    return torch.einsum(equation, u, weight)


def votes_numel(u: torch.Size, weight: torch.Size) -> int:
    """How many numbers the votes of these shapes are."""
    return math.prod(u[:2]) * weight[0] * weight[-2]


def coupling_coefficients(
    logits: Tensor, mask: Tensor | None, coupling_dim: str, leaky: bool
) -> Tensor:
    """Softmax of logits [B, I, O] over the out- or in-capsules, times the mask [I] or [B, I].

    leaky: one more logit, 0, takes part in the softmax and its coefficient is dropped.
    """
    dim = 2 if coupling_dim == "out" else 1
    if leaky:
        zero = torch.zeros_like(logits.narrow(dim, 0, 1))
        c = torch.cat([zero, logits], dim).softmax(dim).narrow(dim, 1, logits.shape[dim])
    else:
        c = logits.softmax(dim)
    return c if mask is None else c * mask.unsqueeze(-1)


def step(
    u: Tensor,
    weight: Tensor,
    v: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    coupling_dim: str,
    leaky: bool,
    scale: float,
) -> Tensor:
    """The definition, on a weight [O, I, E, D] or [O, E, D]."""
    votes = votes_of(u, weight)
    logits = votes.new_zeros(votes.shape[:3]) if prior is None else prior.expand(votes.shape[:3])
    if v is not None:
        logits = logits + scale * torch.einsum("bioe,boe->bio", votes, v)
    c = coupling_coefficients(logits, mask, coupling_dim, leaky)
    return torch.einsum("bio,bioe->boe", c, votes)


def check_layout(op: str, layout: object) -> None:
    """TypeError for anything but a text."""
    if not isinstance(layout, str):
        raise TypeError(f"{op}: weight_layout must be a str, got {layout!r}")


def oied_view(op: str, weight: Tensor, layout: str, out_capsules: int | None) -> Tensor:
    """The weight as a view [O, I, E, D], or [O, E, D] where its layout names no i.

    A layout names the dimensions by the letters o, i, e, d; 1 is a dimension of size one, and (oe)
    is one dimension that holds out-capsules and their dimensions, for `out_capsules` of them.
    """
    check_layout(op, layout)
    if out_capsules is not None:
        out_capsules = as_int(op, "out_capsules", out_capsules, 1)
    names = layout.replace("(oe)", "x").replace("1", "")
    letters = "".join(sorted(names.replace("x", "oe")))
    if letters not in ("deio", "deo"):
        raise ValueError(
            f"{op}: weight_layout is {layout!r}; it must name o, e, d and, unless the weight is "
            "shared, i, as in 'oied', 'idoe', '1oied', 'id(oe)' or 'oed'"
        )
    dims = layout.replace("(oe)", "x")
    if weight.dim() != len(dims) or any(
        size != 1 for name, size in zip(dims, weight.shape) if name == "1"
    ):
        raise ValueError(
            f"{op}: weight of shape {tuple(weight.shape)} does not have the layout {layout!r}"
        )
    for position in reversed(range(len(dims))):
        if dims[position] == "1":
            weight = weight.squeeze(position)
    if "x" in names:
        position = names.index("x")
        if out_capsules is None or weight.shape[position] % out_capsules:
            raise ValueError(
                f"{op}: a weight of layout {layout!r} needs out_capsules, a divisor of its "
                f"dimension of size {weight.shape[position]}, got {out_capsules}"
            )
        weight = weight.unflatten(position, (out_capsules, -1))
        names = names.replace("x", "oe")
    view = weight.permute([names.index(name) for name in ("oied" if "i" in names else "oed")])
    if out_capsules not in (None, view.shape[0]):
        raise ValueError(
            f"{op}: out_capsules is {out_capsules}, and the weight of layout {layout!r} has "
            f"{view.shape[0]} of them"
        )
    return view


def _check_shape(op: str, name: str, tensor: Tensor, u: Tensor, *shapes: tuple[int, ...]) -> None:
    check_floating(op, name, tensor)
    if tuple(tensor.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(tensor.shape)}")
    check_alike(op, name, tensor, "u", u)


def routing_arguments(
    op: str,
    u: Tensor,
    weight: Tensor,
    vector: tuple[str, Tensor | None],
    prior: Tensor | None,
    mask: Tensor | None,
    coupling_dim: str,
    scale: float,
    weight_layout: str,
    out_capsules: int | None,
) -> tuple[tuple[Tensor | None, ...], torch.dtype]:
    """((u, weight as [O, I, E, D] or [O, E, D], vector, prior, mask), checked; the result's dtype).

    `vector` is the op's fourth tensor and its name: v [B, O, E] or bias [O, E]. Routing is computed
    in float32 at least: 16-bit tensors become float32, and autocast does not lower it.
    """
    name, other = vector
    check_floating(op, "u", u)
    check_floating(op, "weight", weight)
    if autocast_dtype(u) is not None:
        u, weight = cast(u, torch.float32), cast(weight, torch.float32)
        other, prior = cast(other, torch.float32), cast(prior, torch.float32)
    if u.dim() != 3:
        raise ValueError(f"{op}: u must be [B, I, D], got shape {tuple(u.shape)}")
    check_alike(op, "weight", weight, "u", u)
    weight = oied_view(op, weight, weight_layout, out_capsules)
    batch, ins, in_dim = u.shape
    outs, out_dim = weight.shape[0], weight.shape[-2]
    if weight.shape[-1] != in_dim or (weight.dim() == 4 and weight.shape[1] != ins):
        had = "I, D" if weight.dim() == 4 else "D"
        has = (*weight.shape[1:-2], weight.shape[-1])
        raise ValueError(
            f"{op}: weight of layout {weight_layout!r} is for {had} = {', '.join(map(str, has))}, "
            f"u of shape {tuple(u.shape)} has I, D = {ins}, {in_dim}"
        )
    if 0 in (ins, in_dim, outs, out_dim):
        raise ValueError(
            f"{op}: there must be capsules: I, D, O, E = {ins}, {in_dim}, {outs}, {out_dim}"
        )
    if other is not None:
        wanted = (batch, outs, out_dim) if name == "v" else (outs, out_dim)
        _check_shape(op, name, other, u, wanted)
    if prior is not None:
        _check_shape(op, "prior", prior, u, (ins, outs), (batch, ins, outs))
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"{op}: mask must be a Tensor, got {type(mask).__name__}")
        if mask.requires_grad:
            raise ValueError(f"{op}: mask is a constant: it must not require grad")
        mask = mask.to(u.dtype)
        _check_shape(op, "mask", mask, u, (ins,), (batch, ins))
    if coupling_dim not in ("out", "in"):
        raise ValueError(f"{op}: coupling_dim is {coupling_dim!r}; it must be 'out' or 'in'")
    check_number(op, "scale", scale)
    tensors = (u, weight, other, prior, mask)
    if u.dtype in (torch.bfloat16, torch.float16):
        tensors = tuple(cast(tensor, torch.float32) for tensor in tensors)
    return tensors, u.dtype


def dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """What the kernels ask of every tensor but u and weight."""
    return tuple(None if t is None else t.contiguous() for t in tensors)


def reference(
    u: Tensor,
    weight: Tensor,
    v: Tensor | None = None,
    *,
    prior: Tensor | None = None,
    mask: Tensor | None = None,
    coupling_dim: str = "out",
    leaky: bool = False,
    scale: float = 1.0,
    weight_layout: str = "oied",
    out_capsules: int | None = None,
) -> Tensor:
    """`step` on the arguments of `routing_pass`."""
    tensors, dtype = routing_arguments(
        "routing_pass", u, weight, ("v", v), prior, mask, coupling_dim, scale, weight_layout,
        out_capsules,
    )  # fmt: skip
    with without_autocast(u):
        return step(*tensors, coupling_dim, leaky, scale).to(dtype)


@fake("routing_pass_forward")
def _forward_fake(
    u: Tensor, weight: Tensor, v: Tensor | None, prior: Tensor | None, *rest: object
) -> Tensor:
    return u.new_empty(u.shape[0], weight.shape[0], weight.shape[-2])


def fake_gradients(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    vector: Tensor | None,
    prior: Tensor | None,
    *call: Any,
) -> tuple[Tensor | None, ...]:
    """What every routing op's backward returns; its last argument says what is needed."""
    needs = call[-1]
    return (
        u.new_empty(u.shape) if needs[0] else None,
        torch.empty_like(weight) if needs[1] else None,
        torch.empty_like(vector) if needs[2] and vector is not None else None,
        torch.empty_like(prior) if needs[3] and prior is not None else None,
    )


fake("routing_pass_backward")(fake_gradients)


@flops("routing_pass_forward")
def _forward_flops(
    u: torch.Size, weight: torch.Size, v: torch.Size | None, *call: Any, out_shape: Any
) -> int:
    sum_and_agreement = 1 + (v is not None)
    return 2 * votes_numel(u, weight) * (u[-1] + sum_and_agreement)


@flops("routing_pass_backward")
def _backward_flops(
    grad: torch.Size,
    u: torch.Size,
    weight: torch.Size,
    v: torch.Size | None,
    *call: Any,
    out_shape: Any,
) -> int:
    needs = call[-1]
    of_votes = any(needs[:2])
    of_sum = of_votes + (v is not None or needs[3])
    of_agreement = of_votes + needs[2] if v is not None else 0
    return 2 * votes_numel(u, weight) * (u[-1] * sum(needs[:2]) + of_sum + of_agreement)


class _RoutingPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        weight: Tensor,
        v: Tensor | None,
        prior: Tensor | None,
        mask: Tensor | None,
        options: tuple[str, bool, float],
        backend: str,
    ) -> Tensor:
        tensors = (u, weight, v, prior, mask)
        s = kernels("routing_pass", backend).forward(*tensors, *options)
        ctx.save_for_backward(*tensors, s)
        ctx.options, ctx.backend = options, backend
        return s

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mask, s = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:4])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grads = partial_gradients(
                lambda *leaves: step(*leaves, mask, *ctx.options), tensors, needs, grad
            )
        else:
            backward = kernels("routing_pass", ctx.backend).backward
            grads = backward(grad, *tensors, mask, s, *ctx.options, needs)
        return *grads, *(None,) * 3


def routing_pass(
    u: Tensor,
    weight: Tensor,
    v: Tensor | None = None,
    *,
    prior: Tensor | None = None,
    mask: Tensor | None = None,
    coupling_dim: str = "out",
    leaky: bool = False,
    scale: float = 1.0,
    weight_layout: str = "oied",
    out_capsules: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """s_j = sum_i c_ij W_ij u_i with c = softmax(prior + scale <W_ij u_i, v_j>) * mask_i.

    Args:
        u: [B, I, D].
        weight: [O, I, E, D], or as `weight_layout` says; [O, E, D] is shared by the in-capsules.
        v: [B, O, E] that the votes are compared with; None stands for 0.
        prior: [I, O] or [B, I, O], added to the routing logits.
        mask: [I] or [B, I], bool or a constant factor of an in-capsule's coupling coefficients.
        coupling_dim: "out", a softmax over the out-capsules, or "in".
        leaky: one more logit, 0, takes part in the softmax and its coefficient is dropped.
        scale: a factor of the dot products.
        weight_layout: the weight's dimensions in its own order, "1" for one of size one, "(oe)"
            for out-capsules and their dimensions in one (`out_capsules` says how many).
        backend: see lamina.backends; None lets Lamina choose.

    Returns s [B, O, E]; gradients for u, weight, v and prior. 16-bit tensors are computed with in
    float32. Raises ValueError where shapes,
    devices or names do not fit, TypeError where dtypes do not.
    """
    tensors, dtype = routing_arguments(
        "routing_pass", u, weight, ("v", v), prior, mask, coupling_dim, scale, weight_layout,
        out_capsules,
    )  # fmt: skip
    options = (coupling_dim, bool(leaky), float(scale))
    chosen = choose(SPEC, backend, tensors, options)
    u, weight, *others = tensors
    if chosen == "reference":
        with without_autocast(u):
            return step(*tensors, *options).to(dtype)
    tensors = (u, weight, *dense(*others))
    if wants_grad(*tensors[:4]):
        return _RoutingPass.apply(*tensors, options, chosen).to(dtype)
    return kernels("routing_pass", chosen).forward(*tensors, *options).to(dtype)


SPEC = Spec(
    name="routing_pass",
    functional=routing_pass,
    reference=reference,
)

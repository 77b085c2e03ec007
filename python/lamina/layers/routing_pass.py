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
from lamina.checks import without_autocast
from lamina.double_backward import partial_gradients
from lamina.fakes import fake, flops
from lamina.layers.routing_arguments import dense, routing_arguments
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

"""Dynamic routing between capsules (Sabour, Frosst, Hinton 2017, procedure 1), votes not stored.

    votes_ij = W_ij u_i;  logits = prior
    `iterations` times:  c = softmax(logits) * mask_i;  s_j = sum_i c_ij votes_ij + bias_j
                         v_j = squash(s_j);  logits += scale <votes_ij, v_j>

Shapes: u [B, I, D] (in-capsules), weight [O, I, E, D] in any layout, or [O, E, D] where all
in-capsules share it, v [B, O, E]. Saved: the inputs and s of every iteration; the backward pass
computes votes and coupling coefficients again. Where u is 0, s and its gradient are 0, not NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamina.backends import choose, kernels, wants_grad
from lamina.checks import as_int, without_autocast
from lamina.double_backward import partial_gradients
from lamina.fakes import fake, flops
from lamina.layers.routing_arguments import dense, routing_arguments
from lamina.layers.routing_pass import (
    coupling_coefficients,
    fake_gradients,
    votes_numel,
    votes_of,
)
from lamina.layers.squash import check_squash
from lamina.layers.squash import reference as squash_reference
from lamina.spec import Spec


class Options(NamedTuple):
    """What the routing is told beside its tensors."""

    iterations: int
    coupling_dim: str
    detach_votes: bool
    leaky: bool
    accumulate: bool
    scale: float
    squash: str
    eps: float

    @property
    def of_forward(self) -> tuple[Any, ...]:
        """In the order of the forward schema: it does not ask where gradients go."""
        return (self.iterations, self.coupling_dim, *self[3:])

    @property
    def of_backward(self) -> tuple[Any, ...]:
        """In the order of the backward schema: s says how many iterations there were."""
        return self[1:]


def route(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """The definition, on a weight [O, I, E, D] or [O, E, D].

    (v [B, O, E], coupling coefficients [B, I, O] of the last iteration, without gradient)
    """
    iterations, coupling_dim, detach_votes, leaky, accumulate, scale, squash, eps = options
    votes = votes_of(u, weight)
    constant = votes.detach() if detach_votes else votes
    b0 = votes.new_zeros(votes.shape[:3]) if prior is None else prior.expand(votes.shape[:3])
    logits = b0
    for t in range(iterations):
        c = coupling_coefficients(logits, mask, coupling_dim, leaky)
        s = torch.einsum("bio,bioe->boe", c, votes if t == iterations - 1 else constant)
        v = squash_reference(s if bias is None else s + bias, squash, eps)
        if t < iterations - 1:
            agreement = scale * torch.einsum("bioe,boe->bio", constant, v)
            logits = (logits if accumulate else b0) + agreement
    return v, c.detach()


def reference(
    u: Tensor,
    weight: Tensor,
    *,
    iterations: int = 3,
    bias: Tensor | None = None,
    prior: Tensor | None = None,
    mask: Tensor | None = None,
    coupling_dim: str = "out",
    detach_votes: bool = False,
    squash: str = "exact",
    eps: float = 0.0,
    weight_layout: str = "oied",
    return_couplings: bool = False,
    accumulate: bool = True,
    scale: float = 1.0,
    leaky: bool = False,
    out_capsules: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`route` on the arguments of `dynamic_routing`."""
    iterations = as_int("dynamic_routing", "iterations", iterations, 1)
    check_squash("dynamic_routing", "squash", squash, eps)
    tensors, dtype = routing_arguments(
        "dynamic_routing", u, weight, ("bias", bias), prior, mask, coupling_dim, scale,
        weight_layout, out_capsules,
    )  # fmt: skip
    options = Options(iterations, coupling_dim, detach_votes, leaky, accumulate, scale, squash, eps)
    with without_autocast(u):
        v, couplings = route(*tensors, options)
    return (v.to(dtype), couplings.to(dtype)) if return_couplings else v.to(dtype)


@fake("dynamic_routing_forward")
def _forward_fake(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    iterations: int,
    *call: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *_, save, return_couplings = call
    batch, ins, _ = u.shape
    outs, out_dim = weight.shape[0], weight.shape[-2]
    return (
        u.new_empty(batch, outs, out_dim),
        u.new_empty(iterations if save else 0, batch, outs, out_dim),
        u.new_empty(batch if return_couplings else 0, ins, outs),
    )


fake("dynamic_routing_backward")(fake_gradients)


@flops("dynamic_routing_forward")
def _forward_flops(
    u: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    prior: torch.Size | None,
    mask: torch.Size | None,
    iterations: int,
    *call: Any,
    out_shape: Any,
) -> int:
    return 2 * votes_numel(u, weight) * (u[-1] + 2 * iterations - 1)


@flops("dynamic_routing_backward")
def _backward_flops(
    grad: torch.Size,
    u: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    prior: torch.Size | None,
    mask: torch.Size | None,
    s: torch.Size,
    *call: Any,
    out_shape: Any,
) -> int:
    detach_votes, needs, iterations = call[1], call[-1], s[0]
    of_c = iterations - (prior is None or not needs[3])  # The first logits may be constant.
    of_v = iterations - 1
    if detach_votes and not any(needs[2:]):
        of_c = of_v = 0
    of_votes = 1 if detach_votes else 2 * iterations - 1
    return 2 * votes_numel(u, weight) * (u[-1] * sum(needs[:2]) + of_votes + of_c + of_v)


class _DynamicRouting(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        prior: Tensor | None,
        mask: Tensor | None,
        options: Options,
        return_couplings: bool,
        backend: str,
    ) -> Tensor | tuple[Tensor, Tensor]:
        tensors = (u, weight, bias, prior, mask)
        v, s, couplings = kernels("dynamic_routing", backend).forward(
            *tensors, *options.of_forward, True, return_couplings
        )
        ctx.save_for_backward(*tensors, s)
        ctx.options, ctx.backend = options, backend
        if not return_couplings:
            return v
        ctx.mark_non_differentiable(couplings)
        return v, couplings

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *couplings_grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mask, s = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:4])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grads = partial_gradients(
                lambda *leaves: route(*leaves, mask, ctx.options)[0], tensors, needs, grad
            )
        else:
            backward = kernels("dynamic_routing", ctx.backend).backward
            grads = backward(grad, *tensors, mask, s, *ctx.options.of_backward, needs)
        return *grads, *(None,) * 4


def dynamic_routing(
    u: Tensor,
    weight: Tensor,
    *,
    iterations: int = 3,
    bias: Tensor | None = None,
    prior: Tensor | None = None,
    mask: Tensor | None = None,
    coupling_dim: str = "out",
    detach_votes: bool = False,
    squash: str = "exact",
    eps: float = 0.0,
    weight_layout: str = "oied",
    return_couplings: bool = False,
    accumulate: bool = True,
    scale: float = 1.0,
    leaky: bool = False,
    out_capsules: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Route the in-capsules u to out-capsules by agreement.

    Args:
        u: [B, I, D].
        weight: [O, I, E, D], or as `weight_layout` says; [O, E, D] is shared by the in-capsules.
        iterations: how often the coupling coefficients are computed.
        bias: [O, E], added to s in every iteration.
        prior: [I, O] or [B, I, O], the routing logits before the first iteration.
        mask: [I] or [B, I], bool or a constant factor of an in-capsule's coupling coefficients.
        coupling_dim: "out", a softmax over the out-capsules (the paper's), or "in".
        detach_votes: the votes are constants except in the last iteration's sum: cheaper, and
            another gradient than the paper's.
        squash, eps: which squash, and its eps; see lamina.functional.squash.
        weight_layout: the weight's dimensions in its own order, "1" for one of size one, "(oe)"
            for out-capsules and their dimensions in one (`out_capsules` says how many).
        return_couplings: also return the last coupling coefficients [B, I, O], without gradient.
        accumulate: False replaces the logits in every iteration instead of adding to them.
        scale: a factor of the dot products.
        leaky: one more logit, 0, takes part in the softmax and its coefficient is dropped.
        backend: see lamina.backends; None lets Lamina choose.

    Returns v [B, O, E]; gradients for u, weight, bias and prior. Computed in float32 or float64:
    bfloat16 and float16 tensors in float32, which autocast does not lower. Raises ValueError where
    shapes, devices or names do not fit, TypeError where dtypes do not.
    """
    iterations = as_int("dynamic_routing", "iterations", iterations, 1)
    check_squash("dynamic_routing", "squash", squash, eps)
    tensors, dtype = routing_arguments(
        "dynamic_routing", u, weight, ("bias", bias), prior, mask, coupling_dim, scale,
        weight_layout, out_capsules,
    )  # fmt: skip
    options = Options(
        iterations,
        coupling_dim,
        bool(detach_votes),
        bool(leaky),
        bool(accumulate),
        float(scale),
        squash,
        float(eps),
    )
    v, couplings = _run(tensors, options, bool(return_couplings), backend)
    return (v.to(dtype), couplings.to(dtype)) if return_couplings else v.to(dtype)


def _run(
    tensors: tuple[Tensor | None, ...],
    options: Options,
    return_couplings: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor | None]:
    chosen = choose(SPEC, backend, tensors, options)
    u, weight, *others = tensors
    if chosen == "reference":
        with without_autocast(u):
            return route(*tensors, options)
    tensors = (u, weight, *dense(*others))
    if wants_grad(*tensors[:4]):
        found = _DynamicRouting.apply(*tensors, options, return_couplings, chosen)
        return found if return_couplings else (found, None)
    v, _, couplings = kernels("dynamic_routing", chosen).forward(
        *tensors, *options.of_forward, False, return_couplings
    )
    return v, couplings


SPEC = Spec(
    name="dynamic_routing",
    functional=dynamic_routing,
    reference=reference,
)

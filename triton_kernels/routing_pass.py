"""routing_pass: one step of dot-product routing, with the kernels of dynamic_routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from . import dynamic_routing
from .dynamic_routing import Routing
from .launch import Target, register
from .linear import ordered_sum


def unsupported(u: Tensor, weight: Tensor, *call: object) -> list[str]:
    """Reasons why these kernels cannot take the call; empty where they can."""
    return dynamic_routing.unsupported(u, weight, *call)


def routing_pass_forward(
    u: Tensor,
    weight: Tensor,
    v: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    coupling_dim: str,
    leaky: bool,
    scale: float,
) -> Tensor:
    """s [B, O, E], the weighted sums of the votes."""
    output = routing_pass_forward_fake(u, weight, v, prior, mask, coupling_dim, leaky, scale)
    v = None if v is None else v.contiguous()
    ordered_sum(
        Routing(u, weight, prior, mask, leaky, scale, coupling_dim).weighted_sums(v, None), output
    )
    return output


def routing_pass_forward_fake(
    u: Tensor,
    weight: Tensor,
    v: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    coupling_dim: str,
    leaky: bool,
    scale: float,
) -> Tensor:
    return u.new_empty((u.size(0), weight.size(0), weight.size(-2)))


def routing_pass_backward(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    v: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    s: Tensor,
    coupling_dim: str,
    leaky: bool,
    scale: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of u, weight, v and prior; None for what is not needed."""
    needs_u, needs_weight, needs_v, needs_prior = needs
    grad = grad.contiguous()
    v = None if v is None else v.contiguous()
    routing = Routing(u, weight, prior, mask, leaky, scale, coupling_dim)
    v_grad = None
    if needs_v:
        v_grad = ordered_sum(routing.feedback(v, grad), grad.new_empty(grad.shape), scale)
    u_grad, weight_grad, prior_grad = None, None, None
    if needs_u or needs_weight or needs_prior:
        stacked = None if v is None else v.unsqueeze(0)
        u_grad, weight_grad, prior_grad = routing.gradients(
            stacked, grad.unsqueeze(0), False, (needs_u, needs_weight, needs_prior)
        )
    return u_grad, weight_grad, v_grad, prior_grad


def routing_pass_backward_fake(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    v: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    s: Tensor,
    coupling_dim: str,
    leaky: bool,
    scale: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    return (
        u.new_empty(u.shape) if needs[0] else None,
        weight.new_empty(weight.shape) if needs[1] else None,
        v.new_empty(v.shape) if needs[2] else None,
        prior.new_empty(prior.shape) if needs[3] else None,
    )


register(
    "routing_pass_forward(Tensor u, Tensor weight, Tensor? v, Tensor? prior, Tensor? mask, "
    "str coupling_dim, bool leaky, float scale) -> Tensor",
    routing_pass_forward,
    routing_pass_forward_fake,
)
register(
    "routing_pass_backward(Tensor grad, Tensor u, Tensor weight, Tensor? v, Tensor? prior, "
    "Tensor? mask, Tensor s, str coupling_dim, bool leaky, float scale, bool[4] needs) "
    "-> (Tensor grad_u, Tensor grad_weight, Tensor grad_v, Tensor grad_prior)",
    routing_pass_backward,
    routing_pass_backward_fake,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Nothing that dynamic_routing does not compile."""
    return iter(())

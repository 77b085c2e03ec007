"""routing_pass: one step of dot-product routing, with the kernels of dynamic_routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from .contracts import check_vectors
from .launch import Target, register
from .routing import Routing, unsupported
from .sums import ordered_sum

__all__ = ["unsupported"]


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
    routing = Routing(u, weight, prior, mask, leaky, scale, coupling_dim)
    if v is not None:
        check_vectors("v", v, u, weight)
    sums = routing.weighted_sums(None if v is None else v.contiguous())
    return ordered_sum(sums, sums.new_empty(sums.shape[1:]))


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
    routing = Routing(u, weight, prior, mask, leaky, scale, coupling_dim)
    check_vectors("grad", grad, u, weight)
    if v is not None:
        check_vectors("v", v, u, weight)
    grad = grad.contiguous()
    v = None if v is None else v.contiguous()
    statistics = routing.new_statistics(1)
    if statistics is not None:
        routing.statistics(v, grad, statistics[0])
    v_grad, u_grad, weight_grad, prior_grad = None, None, None, None
    if needs_v:
        now = None if statistics is None else statistics[0]
        sums = routing.weighted_sums(v, s_grad=grad, statistics=now)
        v_grad = ordered_sum(sums, grad.new_empty(grad.shape), scale)
    if needs_u or needs_weight or needs_prior:
        stacked = None if v is None else v.unsqueeze(0)
        u_grad, weight_grad, prior_grad = routing.gradients(
            stacked, grad.unsqueeze(0), statistics, False, (needs_u, needs_weight, needs_prior)
        )
    return u_grad, weight_grad, v_grad, prior_grad


register(
    "routing_pass_forward(Tensor u, Tensor weight, Tensor? v, Tensor? prior, Tensor? mask, "
    "str coupling_dim, bool leaky, float scale) -> Tensor",
    routing_pass_forward,
)
register(
    "routing_pass_backward(Tensor grad, Tensor u, Tensor weight, Tensor? v, Tensor? prior, "
    "Tensor? mask, Tensor s, str coupling_dim, bool leaky, float scale, bool[4] needs) "
    "-> (Tensor grad_u, Tensor grad_weight, Tensor grad_v, Tensor grad_prior)",
    routing_pass_backward,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Nothing that dynamic_routing does not compile."""
    return iter(())

"""Dynamic routing between capsules: the votes are computed anew in every pass, never stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .contracts import check_dynamic_routing, check_dynamic_routing_backward
from .launch import Target, register
from .routing import Routing, unsupported
from .sums import ordered_sum

__all__ = ["unsupported"]


def dynamic_routing_forward(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    iterations: int,
    coupling_dim: str,
    leaky: bool,
    accumulate: bool,
    scale: float,
    squash: str,
    eps: float,
    save: bool,
    return_couplings: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns v [B, O, E], and if asked for s of every iteration and the last couplings."""
    routing = Routing(u, weight, prior, mask, leaky, scale, coupling_dim)
    check_dynamic_routing(u, weight, bias, iterations)
    b, i, o, e, _ = routing.sizes
    output = u.new_empty((b, o, e))
    s = u.new_empty((iterations if save else 0, b, o, e))
    couplings = u.new_empty((b if return_couplings else 0, i, o))
    v = None
    for t in range(iterations):
        last = t == iterations - 1
        sums = routing.weighted_sums(v, couplings=couplings if last and return_couplings else None)
        v_next = output if last else torch.empty_like(output)
        previous = v if accumulate and not last else None
        routing.squash(sums, bias, previous, s[t] if save else None, v_next, squash, eps)
        v = v_next
    return output, s, couplings


def dynamic_routing_backward(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    s: Tensor,
    coupling_dim: str,
    detach_votes: bool,
    leaky: bool,
    accumulate: bool,
    scale: float,
    squash: str,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of u, weight, bias and prior; None for what is not needed."""
    needs_u, needs_weight, needs_bias, needs_prior = needs
    routing = Routing(u, weight, prior, mask, leaky, scale, coupling_dim)
    check_dynamic_routing_backward(grad, u, weight, bias, s)
    iterations = s.size(0)
    v = torch.zeros_like(s)
    for t in range(iterations - 1):
        previous = v[t] if accumulate and t > 0 else None
        routing.squash(s[t : t + 1], None, previous, None, v[t + 1], squash, eps)

    # Earlier iterations receive nothing through votes that are constants to them.
    first = iterations - 1 if detach_votes and not (needs_bias or needs_prior) else 0
    s_grad = torch.empty_like(s)
    statistics = routing.new_statistics(iterations)
    r = torch.empty_like(s[0]) if accumulate else None
    sums, factor = grad.contiguous().unsqueeze(0), 1.0
    for t in reversed(range(first, iterations)):
        # The gradient of the output itself is no part of R.
        kept = r if t < iterations - 1 else None
        grown = accumulate and t < iterations - 2
        routing.squash_backward(sums, factor, s[t], kept, grown, s_grad[t], squash, eps)
        now = None
        if statistics is not None:
            # Before the first iteration V is 0: gradients of its logits are the prior's alone.
            logits_learn = t > 0 or needs_prior
            now = statistics[t]
            routing.statistics(v[t] if t > 0 else None, s_grad[t] if logits_learn else None, now)
        if t > first:
            sums = routing.weighted_sums(v[t], s_grad=s_grad[t], statistics=now)
            factor = scale
    bias_grad = None
    if needs_bias:
        bias_grad = torch.empty_like(bias)
        ordered_sum(s_grad.flatten(0, 1), bias_grad)
    u_grad, weight_grad, prior_grad = None, None, None
    if needs_u or needs_weight or needs_prior:
        u_grad, weight_grad, prior_grad = routing.gradients(
            v, s_grad, statistics, detach_votes, (needs_u, needs_weight, needs_prior)
        )
    return u_grad, weight_grad, bias_grad, prior_grad


register(
    "dynamic_routing_forward(Tensor u, Tensor weight, Tensor? bias, Tensor? prior, Tensor? mask, "
    "int iterations, str coupling_dim, bool leaky, bool accumulate, float scale, str squash, "
    "float eps, bool save, bool return_couplings) -> (Tensor v, Tensor s, Tensor couplings)",
    dynamic_routing_forward,
)
register(
    "dynamic_routing_backward(Tensor grad, Tensor u, Tensor weight, Tensor? bias, Tensor? prior, "
    "Tensor? mask, Tensor s, str coupling_dim, bool detach_votes, bool leaky, bool accumulate, "
    "float scale, str squash, float eps, bool[4] needs) "
    "-> (Tensor grad_u, Tensor grad_weight, Tensor grad_bias, Tensor grad_prior)",
    dynamic_routing_backward,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Named calls whose launches the offline compilation builds."""
    f32, f64 = torch.float32, torch.float64
    calls = [("out", 128, 1152, 10, 8, 16, f32), ("out", 128, 4096, 64, 16, 32, f32)]
    if every:
        calls += [
            ("out", 32, 2048, 32, 16, 16, f32),
            ("out", 128, 1152, 10, 8, 16, f64),
            ("out", 128, 4096, 64, 16, 32, f64),
            ("in", 128, 1152, 10, 8, 16, f32),
            ("in", 128, 1152, 10, 8, 16, f64),
            ("out", 1, 1152, 1, 8, 16, f32),
        ]
    for over, b, i, o, d, e, dtype in calls:
        new = partial(torch.empty, dtype=dtype, device="meta")
        u, weight, v, s = new(b, i, d), new(o, i, e, d), new(b, o, e), new(3, b, o, e)
        bias, prior, mask = (new(o, e), new(i, o), new(i)) if every else (None, None, None)
        name = f"{str(dtype).removeprefix('torch.')} {over} {b}x{i}x{o}x{d}x{e}"
        tensors, options = (u, weight, bias, prior, mask), (False, True, 1.0, "exact", 0.0)
        yield name, partial(dynamic_routing_forward, *tensors, 3, over, *options, True, False)
        needs = (True, True, every, every)
        yield name, partial(dynamic_routing_backward, v, *tensors, s, over, False, *options, needs)

"""Dynamic routing between capsules (Sabour, Frosst, Hinton 2017, procedure 1), votes never stored.

votes_ij = W_ij u_i;  logits^1 = prior (0)
c = softmax(logits) * mask_i;  s_j = sum_i c_ij votes_ij + bias_j;  v_j = squash(s_j)
logits += scale <votes_ij, v_j>                               ... `iterations` times
"""

import torch
from torch import Tensor

from . import squash as _squash
from .routing_pass import coupling_coefficients, votes_of


def reference(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    iterations: int,
    coupling_dim: str,
    detach_votes: bool,
    leaky: bool,
    accumulate: bool,
    scale: float,
    squash: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """(v [B, O, E], coupling coefficients [B, I, O] of the last iteration, without gradient)."""
    votes = votes_of(u, weight)
    constant = votes.detach() if detach_votes else votes
    b0 = votes.new_zeros(votes.shape[:3]) if prior is None else prior.expand(votes.shape[:3])
    logits = b0
    for t in range(iterations):
        c = coupling_coefficients(logits, mask, coupling_dim, leaky)
        s = torch.einsum("bio,bioe->boe", c, votes if t == iterations - 1 else constant)
        v = _squash.reference(s if bias is None else s + bias, squash, eps)
        if t < iterations - 1:
            agreement = scale * torch.einsum("bioe,boe->bio", constant, v)
            logits = (logits if accumulate else b0) + agreement
    return v, c.detach()

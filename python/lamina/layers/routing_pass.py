"""routing_pass: one step of dot-product routing, the primitive behind dynamic routing.

    votes_ij = W_ij u_i;  c = softmax(prior + scale <votes_ij, v_j>) * mask_i;  s_j = sum_i c_ij votes_ij

Inverted dot-product attention, k-means-like and self-attention routing are this step and ordinary
PyTorch on small [B, O, E] tensors. The votes [B, I, O, E] are never stored.
"""

import torch
from torch import Tensor


def votes_of(u: Tensor, weight: Tensor) -> Tensor:
    """[B, I, O, E] from u [B, I, D] and weight [O, I, E, D] or [O, E, D]."""
    equation = "bid,oied->bioe" if weight.dim() == 4 else "bid,oed->bioe"
    return torch.einsum(equation, u, weight)


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


def reference(
    u: Tensor,
    weight: Tensor,
    v: Tensor | None,
    prior: Tensor | None,
    mask: Tensor | None,
    coupling_dim: str,
    leaky: bool,
    scale: float,
) -> Tensor:
    votes = votes_of(u, weight)
    logits = votes.new_zeros(votes.shape[:3]) if prior is None else prior.expand(votes.shape[:3])
    if v is not None:
        logits = logits + scale * torch.einsum("bioe,boe->bio", votes, v)
    c = coupling_coefficients(logits, mask, coupling_dim, leaky)
    return torch.einsum("bio,bioe->boe", c, votes)

"""Peers of dynamic_routing: the clean einsum, and the layer as public repositories write it."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina.bench.peers import alternatives


def einsum(u: Tensor, weight: Tensor) -> Tensor:
    """Three iterations as einsum and autograd write them: the votes are stored."""
    votes = torch.einsum("bid,oied->bioe", u, weight)
    logits = votes.new_zeros(votes.shape[:3])
    for t in range(3):
        s = torch.einsum("bio,bioe->boe", logits.softmax(2), votes)
        q = s.square().sum(-1, keepdim=True)
        v = q.sqrt() / (1 + q) * s
        if t < 2:
            logits = logits + torch.einsum("bioe,boe->bio", votes, v)
    return v


def _public(u: Tensor, weight: Tensor) -> Tensor:
    """A matrix product for each pair of capsules, sums of broadcast products, eps in the norm."""
    votes = torch.matmul(weight, u[:, None, :, :, None]).squeeze(-1)
    logits = votes.new_zeros(votes.shape[:3])
    for t in range(3):
        s = (logits.softmax(1)[..., None] * votes).sum(-2, keepdim=True)
        n = s.norm(dim=-1, keepdim=True)
        v = n**2 / (1 + n**2) / (n + 1e-8) * s
        if t < 2:
            logits = logits + (v * votes).sum(-1)
    return v.squeeze(-2)


PEERS = (*alternatives("einsum", einsum), *alternatives("public layer", _public))

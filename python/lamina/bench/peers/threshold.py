"""Peers of threshold: torch's own function, and the layer that people write by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.bench.peers import alternatives


def _threshold(input: Tensor, threshold: float) -> Tensor:
    return F.threshold(input, threshold, 0.0)


def _where(input: Tensor, threshold: float) -> Tensor:
    return torch.where(input > threshold, input, torch.zeros_like(input))


PEERS = (*alternatives("F.threshold", _threshold), *alternatives("torch.where", _where))

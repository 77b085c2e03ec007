"""Peers of threshold: torch's own function, and the layer that people write by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.bench.peers import alternatives
from lamina.spec import Sample


def _threshold(input: Tensor, threshold: float, inplace: bool = False) -> Tensor:
    return F.threshold(input, threshold, 0.0, inplace)


def _where(input: Tensor, threshold: float) -> Tensor:
    return torch.where(input > threshold, input, torch.zeros_like(input))


def _in_place(sample: Sample) -> str | None:
    return "makes a new tensor" if sample.overwrites else None


PEERS = (
    *alternatives("F.threshold", _threshold),
    *alternatives("torch.where", _where, refuses=_in_place),
)

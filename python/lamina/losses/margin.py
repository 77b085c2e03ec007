"""The margin loss of capsule networks (Sabour, Frosst, Hinton 2017, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina.checks import check_floating, check_number, one_hot


class MarginLoss(nn.Module):
    """sum_k T_k max(0, m+ - |v_k|)^2 + lambda (1 - T_k) max(0, |v_k| - m-)^2 for each sample.

    T_k is 1 where class k is present. `positive`, `negative` and `absent_weight` are the paper's
    m+, m- and lambda; `reduction` over the samples is "mean", "sum" or "none".
    """

    def __init__(
        self,
        positive: float = 0.9,
        negative: float = 0.1,
        absent_weight: float = 0.5,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(
                f"MarginLoss: reduction is {reduction!r}; it must be 'mean', 'sum' or 'none'"
            )
        check_number("MarginLoss", "positive", positive)
        check_number("MarginLoss", "negative", negative)
        check_number("MarginLoss", "absent_weight", absent_weight)
        self.positive = positive
        self.negative = negative
        self.absent_weight = absent_weight
        self.reduction = reduction

    def forward(self, lengths: Tensor, target: Tensor) -> Tensor:
        """The loss of capsule lengths [B, O].

        target: class numbers [B] (int64), or [B, O] with 1 for every class that is present.
        Raises ValueError where shapes, devices or class numbers do not fit, TypeError where types
        do not. Class numbers that do not fit are torch's assertion on a GPU and in compiled code;
        under vmap, which looks at no values, they stand for no class.
        """
        check_floating("MarginLoss", "lengths", lengths)
        if lengths.dim() != 2:
            raise ValueError(f"MarginLoss: lengths must be [B, O], got {tuple(lengths.shape)}")
        if not isinstance(target, Tensor):
            raise TypeError(f"MarginLoss: target must be a Tensor, got {type(target).__name__}")
        if target.device != lengths.device:
            raise ValueError(
                f"MarginLoss: target is on {target.device} and lengths on {lengths.device}; "
                "move them to one device"
            )
        if target.shape not in (lengths.shape[:1], lengths.shape):
            raise ValueError(
                f"MarginLoss: target must have shape {tuple(lengths.shape[:1])} or "
                f"{tuple(lengths.shape)}, got {tuple(target.shape)}"
            )
        if target.dim() == 1:
            if target.dtype != torch.int64:
                raise TypeError(f"MarginLoss: class numbers must be int64, got {target.dtype}")
            target = one_hot("MarginLoss", "class numbers", target, lengths.shape[1])
        present = target.to(lengths.dtype)
        missed = F.relu(self.positive - lengths).square()
        spurious = F.relu(lengths - self.negative).square()
        loss = (present * missed + self.absent_weight * (1 - present) * spurious).sum(1)
        return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[self.reduction]()

    def extra_repr(self) -> str:
        return (
            f"positive={self.positive}, negative={self.negative}, "
            f"absent_weight={self.absent_weight}, reduction={self.reduction!r}"
        )

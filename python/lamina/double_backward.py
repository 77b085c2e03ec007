"""Gradients as a graph of plain torch operations, for `create_graph=True`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def partial_gradients(
    reference: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    grad: Tensor,
) -> list[Tensor | None]:
    """The gradients of `reference(*tensors)` for the tensors that are needed, differentiable again.

    A view of each tensor stands in for it: where one argument is computed from another, the
    gradient must stop at the argument, not run on through its history.
    """
    views = [t.view_as(t) if t is not None and need else t for t, need in zip(tensors, needs)]
    output = reference(*views)
    wanted = [view for view, need in zip(views, needs) if need]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs]

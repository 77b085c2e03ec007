"""Batch normalisation (Ioffe, Szegedy 2015) folded into the convolution before it, for inference.

With the running statistics, norm(conv(x)) = scale (conv(x) - mean) / sqrt(var + eps) + shift is a
convolution again: its filters are the old ones times scale / sqrt(var + eps).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lamina.checks import check_floating, check_number


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the convolution that equals the given one with batch norm after it.

    Args:
        weight: [K, ...], out_channels first (of a linear layer too: `weight.t()` of "in_out").
        bias: [K] or None.
        running_mean, running_var: [K].
        scale, shift: [K] or None, the norm's weight and bias.
        eps: as of the norm.

    Both results have the dtype of `weight`, whatever the norm's.
    Raises TypeError for anything but floating-point tensors, ValueError where shapes do not fit.
    """
    check_floating("fold_batch_norm", "weight", weight)
    if weight.dim() == 0:
        raise ValueError("fold_batch_norm: weight must have out_channels first, got a scalar")
    shape = (weight.shape[0],)
    vectors = {"bias": bias, "scale": scale, "shift": shift}
    for name, tensor in {
        **{name: vector for name, vector in vectors.items() if vector is not None},
        "running_mean": running_mean,
        "running_var": running_var,
    }.items():
        check_floating("fold_batch_norm", name, tensor)
        if tensor.shape != shape:
            raise ValueError(
                f"fold_batch_norm: {name} must have shape {shape}, got {tuple(tensor.shape)}"
            )
    check_number("fold_batch_norm", "eps", eps)
    # In float32 at least: 16-bit results are rounded once.
    wide = torch.promote_types(running_var.dtype, torch.float32)
    factor = torch.rsqrt(running_var.to(wide) + eps)
    factor = factor if scale is None else factor * scale
    moved = -running_mean if bias is None else bias - running_mean.to(wide)
    moved = moved * factor if shift is None else moved * factor + shift
    folded = weight * factor.view(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), moved.to(weight.dtype)

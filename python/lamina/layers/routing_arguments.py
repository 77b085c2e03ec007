"""What the routing ops accept, and in which form their kernels get it."""

from __future__ import annotations

import torch
from torch import Tensor

from lamina.checks import (
    as_int,
    autocast_dtype,
    cast,
    check_alike,
    check_floating,
    check_number,
)


def check_layout(op: str, layout: object) -> None:
    """TypeError for anything but a text."""
    if not isinstance(layout, str):
        raise TypeError(f"{op}: weight_layout must be a str, got {layout!r}")


def oied_view(op: str, weight: Tensor, layout: str, out_capsules: int | None) -> Tensor:
    """The weight as a view [O, I, E, D], or [O, E, D] where its layout names no i.

    A layout names the dimensions by the letters o, i, e, d; 1 is a dimension of size one, and (oe)
    is one dimension that holds out-capsules and their dimensions, for `out_capsules` of them.
    """
    check_layout(op, layout)
    if out_capsules is not None:
        out_capsules = as_int(op, "out_capsules", out_capsules, 1)
    names = layout.replace("(oe)", "x").replace("1", "")
    letters = "".join(sorted(names.replace("x", "oe")))
    if letters not in ("deio", "deo"):
        raise ValueError(
            f"{op}: weight_layout is {layout!r}; it must name o, e, d and, unless the weight is "
            "shared, i, as in 'oied', 'idoe', '1oied', 'id(oe)' or 'oed'"
        )
    dims = layout.replace("(oe)", "x")
    if weight.dim() != len(dims) or any(
        size != 1 for name, size in zip(dims, weight.shape) if name == "1"
    ):
        raise ValueError(
            f"{op}: weight of shape {tuple(weight.shape)} does not have the layout {layout!r}"
        )
    for position in reversed(range(len(dims))):
        if dims[position] == "1":
            weight = weight.squeeze(position)
    if "x" in names:
        position = names.index("x")
        if out_capsules is None or weight.shape[position] % out_capsules:
            raise ValueError(
                f"{op}: a weight of layout {layout!r} needs out_capsules, a divisor of its "
                f"dimension of size {weight.shape[position]}, got {out_capsules}"
            )
        weight = weight.unflatten(position, (out_capsules, -1))
        names = names.replace("x", "oe")
    view = weight.permute([names.index(name) for name in ("oied" if "i" in names else "oed")])
    if out_capsules not in (None, view.shape[0]):
        raise ValueError(
            f"{op}: out_capsules is {out_capsules}, and the weight of layout {layout!r} has "
            f"{view.shape[0]} of them"
        )
    return view


def _check_shape(op: str, name: str, tensor: Tensor, u: Tensor, *shapes: tuple[int, ...]) -> None:
    check_floating(op, name, tensor)
    if tuple(tensor.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(tensor.shape)}")
    check_alike(op, name, tensor, "u", u)


def routing_arguments(
    op: str,
    u: Tensor,
    weight: Tensor,
    vector: tuple[str, Tensor | None],
    prior: Tensor | None,
    mask: Tensor | None,
    coupling_dim: str,
    scale: float,
    weight_layout: str,
    out_capsules: int | None,
) -> tuple[tuple[Tensor | None, ...], torch.dtype]:
    """((u, weight as [O, I, E, D] or [O, E, D], vector, prior, mask), checked; the result's dtype).

    `vector` is the op's fourth tensor and its name: v [B, O, E] or bias [O, E]. Routing is computed
    in float32 at least: 16-bit tensors become float32, and autocast does not lower it.
    """
    name, other = vector
    check_floating(op, "u", u)
    check_floating(op, "weight", weight)
    if autocast_dtype(u) is not None:
        u, weight = cast(u, torch.float32), cast(weight, torch.float32)
        other, prior = cast(other, torch.float32), cast(prior, torch.float32)
    if u.dim() != 3:
        raise ValueError(f"{op}: u must be [B, I, D], got shape {tuple(u.shape)}")
    check_alike(op, "weight", weight, "u", u)
    weight = oied_view(op, weight, weight_layout, out_capsules)
    batch, ins, in_dim = u.shape
    outs, out_dim = weight.shape[0], weight.shape[-2]
    if weight.shape[-1] != in_dim or (weight.dim() == 4 and weight.shape[1] != ins):
        had = "I, D" if weight.dim() == 4 else "D"
        has = (*weight.shape[1:-2], weight.shape[-1])
        raise ValueError(
            f"{op}: weight of layout {weight_layout!r} is for {had} = {', '.join(map(str, has))}, "
            f"u of shape {tuple(u.shape)} has I, D = {ins}, {in_dim}"
        )
    if 0 in (ins, in_dim, outs, out_dim):
        raise ValueError(
            f"{op}: there must be capsules: I, D, O, E = {ins}, {in_dim}, {outs}, {out_dim}"
        )
    if other is not None:
        wanted = (batch, outs, out_dim) if name == "v" else (outs, out_dim)
        _check_shape(op, name, other, u, wanted)
    if prior is not None:
        _check_shape(op, "prior", prior, u, (ins, outs), (batch, ins, outs))
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"{op}: mask must be a Tensor, got {type(mask).__name__}")
        if mask.requires_grad:
            raise ValueError(f"{op}: mask is a constant: it must not require grad")
        mask = mask.to(u.dtype)
        _check_shape(op, "mask", mask, u, (ins,), (batch, ins))
    if coupling_dim not in ("out", "in"):
        raise ValueError(f"{op}: coupling_dim is {coupling_dim!r}; it must be 'out' or 'in'")
    check_number(op, "scale", scale)
    tensors = (u, weight, other, prior, mask)
    if u.dtype in (torch.bfloat16, torch.float16):
        tensors = tuple(cast(tensor, torch.float32) for tensor in tensors)
    return tensors, u.dtype


def dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """What the kernels ask of every tensor but u and weight."""
    return tuple(None if t is None else t.contiguous() for t in tensors)

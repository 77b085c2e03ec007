"""Windows that slide over images: what conv2d, im2col and col2im share."""

from __future__ import annotations

from collections.abc import Sequence

from lamina.checks import index

Pair = int | Sequence[int]


def as_pair(op: str, name: str, value: object, least: int) -> list[int]:
    """The vertical and the horizontal one of an argument that may be one number for both."""
    values = [index(v) for v in (value if isinstance(value, (tuple, list)) else [value])]
    if None in values:
        raise TypeError(f"{op}: {name} must be an int or two ints, got {value!r}")
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2:
        raise ValueError(f"{op}: {name} must be an int or two ints, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    return values


def positions(
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> list[int]:
    """How many places a kernel takes down and across an image of this size."""
    return [
        (size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in (0, 1)
    ]

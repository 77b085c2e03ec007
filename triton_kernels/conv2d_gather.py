"""Which pixels of the source a tap meets.

One gather serves both directions. A convolution, and each stride phase of backward-data, reads
    source[n, i * y_scale + y_first + j * y_step, l * x_scale + x_first + q * x_step, channel]
for tap (j, q) of output pixel (i, l): a phase is a convolution of stride 1 with the taps it meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd


@dataclass(frozen=True)
class Gather:
    """One direction of the gather: source = pixel * scale + first + tap * step."""

    size: int
    source: int
    taps: int
    scale: int
    first: int
    step: int


def forward_gather(
    output: int, source: int, taps: int, stride: int, padding: int, dilation: int
) -> Gather:
    return Gather(output, source, taps, stride, -padding, dilation)


def phase_gather(
    phase: int, input: int, output: int, taps: int, stride: int, padding: int, dilation: int
) -> tuple[Gather, int, int]:
    """Backward-data of the input pixels phase, phase + stride, ...: the gather, which of the taps
    is the first that meets them, and the distance between such taps."""
    size = len(range(phase, input, stride))
    distance = stride // gcd(stride, dilation)
    meeting = [
        r for r in range(min(distance, taps)) if (phase + padding - r * dilation) % stride == 0
    ]
    if not meeting:
        return Gather(size, output, 0, 1, 0, 0), 0, 1
    first = meeting[0]
    gather = Gather(
        size,
        output,
        len(range(first, taps, distance)),
        1,
        (phase + padding - first * dilation) // stride,
        -(distance * dilation) // stride,
    )
    return gather, first, distance


def narrow(groups: int, columns: int, channels: int) -> bool:
    """Whether groups are computed elementwise; their masks must begin with a byte otherwise."""
    return groups > 1 and (min(columns, channels) < 16 or columns % 8 != 0)

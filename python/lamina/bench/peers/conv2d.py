"""Peers of conv2d: torch's in both memory formats, compiled, and the hand-made im2col."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.bench.peers import Peer, alternatives
from lamina.layers.conv2d import conv2d
from lamina.layers.conv2d_call import reference
from lamina.spec import Sample


def _unfold(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "relu",
) -> Tensor:
    """The column matrix in memory, then one matrix product: how articles teach convolution."""
    (height, width), (rows, columns) = input.shape[2:], weight.shape[2:]
    strides, pads, dilations = (
        (value, value) if isinstance(value, int) else value for value in (stride, padding, dilation)
    )
    out_height = (height + 2 * pads[0] - dilations[0] * (rows - 1) - 1) // strides[0] + 1
    out_width = (width + 2 * pads[1] - dilations[1] * (columns - 1) - 1) // strides[1] + 1
    patches = F.unfold(input, (rows, columns), dilations, pads, strides)
    output = weight.flatten(1) @ patches + bias[:, None]
    return F.relu(output).unflatten(2, (out_height, out_width))


def _unfold_refuses(sample: Sample) -> str | None:
    given = sample.kwargs
    plain = given.get("groups", 1) == 1 and not isinstance(given.get("padding", 0), str)
    if not plain or given.get("activation") != "relu" or given.get("residual") is not None:
        return "takes relu, one group and padding in numbers only"
    return None


PEERS = (
    *alternatives("eager", reference),
    *alternatives("channels_last", reference, layout=torch.channels_last),
    Peer("unfold + matmul", lambda *_: _unfold, refuses=_unfold_refuses),
    Peer(
        "lamina cuda library",
        lambda *_: partial(conv2d, backend="cuda", algorithm="library"),
        device="cuda",
        apart="it is Lamina's own: torch's convolution with our kernels around it",
    ),
)

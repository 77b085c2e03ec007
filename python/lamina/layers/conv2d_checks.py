"""What conv2d accepts, and in which form its kernels get it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lamina.checks import check_alike, check_bias, check_floating
from lamina.layers.conv2d_call import Options
from lamina.windows import Pair, as_pair

ALGORITHMS = ("auto", "im2col", "winograd", "winograd4", "library")
WINOGRAD = ("winograd", "winograd4")


def check_shapes(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    check_floating("conv2d", "input", input)
    check_floating("conv2d", "weight", weight)
    if weight.dim() != 4:
        raise ValueError(f"conv2d: weight must have 4 dimensions, got shape {tuple(weight.shape)}")
    if input.dim() not in (3, 4):
        raise ValueError(
            f"conv2d: input must be [N, C, H, W] or [C, H, W], got shape {tuple(input.shape)}"
        )
    outs, ins = weight.shape[0], weight.shape[1] * groups
    if outs % groups:
        raise ValueError(
            f"conv2d: groups must divide the {outs} out_channels of the weight of shape "
            f"{tuple(weight.shape)}, got {groups}"
        )
    if input.shape[-3] != ins:
        raise ValueError(
            f"conv2d: input of shape {tuple(input.shape)} must have {ins} channels: the weight has "
            f"shape {tuple(weight.shape)} and groups is {groups}"
        )
    check_alike("conv2d", "weight", weight, "input", input)
    check_bias("conv2d", bias, outs, "out_channels", weight, input)


def check_algorithm(op: str, algorithm: object) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"{op}: algorithm is {algorithm!r}; it must be one of {', '.join(ALGORITHMS)}"
        )


def pad(
    input: Tensor, weight: Tensor, stride: list[int], padding: Pair | str, dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """Zero padding that is the same on both sides, and the input, which has the rest if any."""
    if not isinstance(padding, str):
        return input, as_pair("conv2d", "padding", padding, 0)
    if padding == "valid":
        return input, [0, 0]
    if padding != "same":
        raise ValueError(
            f"conv2d: padding is {padding!r}; it must be 'same', 'valid', an int or two ints"
        )
    if stride != [1, 1]:
        raise ValueError(f"conv2d: padding 'same' needs stride 1, got {stride}")
    total = [dilation[d] * (weight.shape[d + 2] - 1) for d in (0, 1)]
    if total[0] % 2 or total[1] % 2:
        input = F.pad(input, (0, total[1] % 2, 0, total[0] % 2))
    return input, [total[0] // 2, total[1] // 2]


def is_channels_last(input: Tensor) -> bool:
    """Whether a pixel's channels lie side by side. A single number is in either layout."""
    channels, stride = input.shape[1], input.stride()
    return stride[1] == 1 and stride[3] >= channels and input.numel() != input.shape[0]


def check_residual(residual: Tensor, input: Tensor, shape: tuple[int, ...]) -> None:
    """A residual is like the input, and of the shape of the result."""
    check_floating("conv2d", "residual", residual)
    check_alike("conv2d", "residual", residual, "input", input)
    if residual.shape != shape:
        raise ValueError(
            f"conv2d: residual must have the shape of the result, {tuple(shape)}, "
            f"got {tuple(residual.shape)}"
        )


def check_sizes(tensors: tuple[Tensor | None, ...], options: Options, batched: bool) -> None:
    input, weight, _, residual = tensors
    kernel, unit = tuple(weight.shape[2:]), options.stride + options.dilation == [1] * 4
    if options.algorithm in WINOGRAD and not (kernel == (3, 3) and unit):
        raise ValueError(
            f"conv2d: algorithm {options.algorithm!r} needs a 3x3 kernel, stride 1 and dilation 1, "
            f"got kernel of size {kernel}, stride {options.stride} and dilation {options.dilation}"
        )
    if 0 in (*weight.shape, *input.shape[1:]):
        raise ValueError(
            f"conv2d: weight of shape {tuple(weight.shape)} must have filters of at least 1x1, and "
            f"input of shape {tuple(input.shape)} channels and pixels"
        )
    sizes = options.output_sizes(input, weight)
    if min(sizes) < 1:
        raise ValueError(
            f"conv2d: kernel of size {kernel} with dilation {options.dilation} is larger than the "
            f"input of shape {tuple(input.shape)} with padding {options.padding}"
        )
    if residual is not None:
        shape = (*(input.shape[:1] if batched else ()), weight.shape[0], *sizes)
        check_residual(residual, input, shape)

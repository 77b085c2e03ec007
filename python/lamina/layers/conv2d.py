"""Two-dimensional convolution with what follows it: y = act(conv2d(x, W) + b + residual).

Shapes: input [N, C, H, W] or [C, H, W], weight [K, C / groups, R, S], bias [K], residual and result
[N, K, OH, OW] with OH = (H + 2 padding - dilation (R - 1) - 1) // stride + 1. float64, float32,
bfloat16, float16; 16-bit types accumulate in float32. channels_last input, channels_last output.
Activations, NaN and what is saved for the backward pass are those of lamina.layers.linear.

The convolution is the matrix product of im2col (Chellapilla, Puri, Simard 2006), with the columns
gathered where the product needs them and never stored; 3x3 filters may take the minimal filtering
of Winograd (Lavin, Gray 2015).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_exporting

from lamina.activations import FINISH, Activation, parse_activation
from lamina.backends import below, choice, choose, kernels, wants_grad
from lamina.checks import as_int, autocast_dtype, cast
from lamina.layers.conv2d_call import Conv2dFunction, Options, reference
from lamina.layers.conv2d_checks import (
    WINOGRAD,
    check_algorithm,
    check_shapes,
    check_sizes,
    is_channels_last,
    pad,
)
from lamina.modules import ISA, MULTIPLIES_BF16
from lamina.spec import FLOATS, Spec
from lamina.windows import Pair, as_pair

# Elements times out_channels below which ATen's shorter call wins.
_SMALL = 1 << 16
# 3x3 with stride 2, contiguous, with AVX-512: from so many images, channels and pixels of an output
# image on ours is level forward and wins with the backward pass.
_STRIDED_IMAGES, _STRIDED_CHANNELS, _STRIDED_PIXELS = 8, 64, 14 * 14
_FLOATS = frozenset(FLOATS)


def _small(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    activation: Activation,
) -> Tensor | None:
    """ATen's result for a convolution so small that our checks would outlast it, else None.

    As in lamina.layers.linear: only what ATen would get wrong in silence is looked at.
    """
    try:
        outs, _, _, _ = weight.shape
        if (
            is_exporting()
            # Without input channels ATen's result has no channels either.
            or not 0 < input.numel() * outs < _SMALL
            or not (input.is_cpu and weight.is_cpu and (bias is None or bias.is_cpu))
            or input.dtype not in _FLOATS
            or type(groups) is not int
        ):
            return None
        finish = FINISH[activation]
        output = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return finish(output) if finish else output
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return None


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    activation: Activation = None,
    residual: Tensor | None = None,
    algorithm: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """act(conv2d(input, weight) + bias + residual), fused forward and backward.

    Args:
        input: [N, C, H, W] or [C, H, W].
        weight: [K, C / groups, R, S].
        bias: [K] or None.
        stride, dilation: one int, or two: vertical, horizontal.
        padding: the same, or "valid" (none) or "same" (output as large as input; stride 1 only).
        groups: C and K are cut into so many parts, which do not see each other.
        activation: None, a name, a pair (name, parameter), an nn.Module or a callable; what is not
            among the fused ones (see lamina.layers.linear) runs afterwards.
        residual: of the shape of the result, added before the activation; or None.
        algorithm: "im2col", the plain matrix product; for 3x3 kernels of stride and dilation 1
            "winograd", F(2x2, 3x3), or "winograd4", F(4x4, 3x3); or "auto", which takes winograd
            where it fits and has 16 channels or more on both sides. Winograd spreads NaN and
            infinity to the pixels that share a tile, of 2x2 or 4x4. winograd4 is never taken
            unasked: in float32 and in float64 its error is about 5 times im2col's. Both are the
            CPU's. "library", the CUDA backend's, is torch's own convolution (cuDNN's), with
            Lamina's kernels around it: bias, residual, activation and mask in one pass, in place;
            in the backward pass the activation's and the bias's gradient in one. A backend
            refuses what is not its own; the reference, which also runs calls too small for a
            kernel, runs as the definition.
        backend: see lamina.backends; None lets Lamina choose.

    Returns [N, K, OH, OW] or [K, OH, OW], channels_last where input is, in the dtype of the input
    or autocast's. Raises ValueError where shapes, devices or names do not fit, TypeError where
    types do not.
    """
    if choice.free and backend is None and residual is None and algorithm == "auto":
        output = _small(input, weight, bias, stride, padding, dilation, groups, activation)
        if output is not None:
            return output
    name, parameter, after = parse_activation("conv2d", activation)
    if isinstance(input, Tensor) and (low := autocast_dtype(input)) is not None:
        input, weight, bias = cast(input, low), cast(weight, low), cast(bias, low)
        residual = cast(residual, low)
    groups = as_int("conv2d", "groups", groups, 1)
    check_shapes(input, weight, bias, groups)
    check_algorithm("conv2d", algorithm)
    stride = as_pair("conv2d", "stride", stride, 1)
    dilation = as_pair("conv2d", "dilation", dilation, 1)
    batched = input.dim() == 4
    input = input if batched else input.unsqueeze(0)
    input, padding = pad(input, weight, stride, padding, dilation)
    options = Options(
        stride, padding, dilation, groups, name, parameter, algorithm, is_channels_last(input)
    )
    check_sizes((input, weight, bias, residual), options, batched)
    residual = residual if batched or residual is None else residual.unsqueeze(0)
    output = _run((input, weight, bias, residual), options, backend)
    output = output if batched else output.squeeze(0)
    return after(output) if after else output


def _run(tensors: tuple[Tensor | None, ...], options: Options, backend: str | None) -> Tensor:
    chosen = choose(SPEC, backend, tensors, options)
    if chosen == "reference":
        return options.define(*tensors)
    input, weight, bias, residual = tensors
    input = input.contiguous(memory_format=options.memory_format)
    if residual is not None:
        residual = residual.contiguous(memory_format=options.memory_format)
    tensors = (input, weight, bias, residual)
    if wants_grad(*tensors):
        return Conv2dFunction.apply(*tensors, options, chosen)
    return kernels("conv2d", chosen).forward(*tensors, *options, False)[0]


def _slower(
    backend: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *options: Any,
) -> str | None:
    options = Options(*options)
    if below(input.numel() * weight.shape[0], _SMALL):
        return "below 2^16 elements times out_channels ATen's shorter call wins"
    if backend == "cpp" and input.dtype == torch.bfloat16 and MULTIPLIES_BF16:
        return "this CPU multiplies bf16 itself, which oneDNN makes use of"
    kernel, one = tuple(weight.shape[2:]), (1, 1)
    measured = backend == "cpp" and input.dtype == torch.float32 and options.algorithm == "auto"
    if not measured or kernel == one or (options.groups > 1 and max(options.stride) == 1):
        return None
    # What csrc/conv2d/few_channels.h takes.
    few = input.shape[1] <= 4 and options.groups == 1 and input.is_contiguous()
    filters_3x3 = kernel == (3, 3) and tuple(options.dilation) == one
    strided = (
        ISA == "avx512"
        and tuple(options.stride) == (2, 2)
        and options.groups == 1
        and not options.channels_last
        and not below(input.shape[0], _STRIDED_IMAGES)
        and not below(min(weight.shape[:2]), _STRIDED_CHANNELS)
        and not below(math.prod(options.output_sizes(input, weight)), _STRIDED_PIXELS)
    )
    if not few and not (filters_3x3 and (tuple(options.stride) == one or strided)):
        return (
            "beside 1x1, 3x3 with stride 1, inputs of up to 4 channels, and (AVX-512) contiguous "
            "3x3 with stride 2 of at least 8 images, 64 channels and 14² pixels, oneDNN's "
            "convolution is level or ahead"
        )
    return None


def _unsupported(backend: str, *call: object) -> list[str]:
    algorithm = Options(*call[4:]).algorithm
    if algorithm in WINOGRAD and backend != "cpp":
        return [f"algorithm {algorithm!r} is the CPU's"]
    if algorithm == "library" and backend != "cuda":
        return ["algorithm 'library' is the CUDA backend's"]
    return []


def _how(backend: str, *call: object) -> str:
    library = backend == "cuda" and Options(*call[4:]).algorithm == "library"
    return "torch's convolution with Lamina's kernels around it" if library else ""


SPEC = Spec(
    name="conv2d",
    functional=conv2d,
    reference=reference,
    slower=_slower,
    unsupported=_unsupported,
    how=_how,
)

"""conv2d: implicit GEMM over gathered pixels; the column matrix is never stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from lamina.windows import positions

from .contracts import check_conv2d, check_conv2d_added, check_conv2d_backward, reach
from .conv2d_config import candidates
from .conv2d_dz import activation_backward
from .conv2d_gather import forward_gather
from .conv2d_product import convolve, input_gradient
from .conv2d_weight import weight_gradient
from .epilogue import new_saved
from .launch import Target, refusals, register

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def unsupported(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    *_: object,
) -> list[str]:
    """Reasons why these kernels cannot take the call; empty where they can."""
    reasons = refusals(input, DTYPES)
    # At least as many as the output has.
    pixels = prod(input.size(d + 2) + 2 * padding[d] for d in (0, 1))
    if max(max(input.size(1), weight.size(0)) * pixels, reach(weight, 0)) >= 1 << 31:
        # In 64 bits the taps' offsets would take registers that the products need.
        reasons.append("an image, or a weight, of 2^31 elements or more: offsets have 32 bits")
    return reasons


def strides_as(tensor: Tensor, channels_last: bool) -> Tensor:
    """`tensor` with the strides of its layout, which torch leaves open for sizes of 1."""
    _, channels, height, width = tensor.shape
    if channels_last:
        strides = height * width * channels, 1, width * channels, channels
    else:
        strides = channels * height * width, height * width, width, 1
    return tensor.as_strided(tensor.shape, strides)


def new_output(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
) -> Tensor:
    height, width = positions(input.shape[2:], weight.shape[2:], dilation, padding, stride)
    return torch.empty(
        (input.size(0), weight.size(0), height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    parameter: float,
    algorithm: str,
    channels_last: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Returns act(conv2d(input, weight) + bias + residual) and what the backward needs of it."""
    windows = stride, padding, dilation
    sizes = check_conv2d(input, weight, windows, groups, activation)
    check_conv2d_added(bias, residual, input, sizes, channels_last)
    output = new_output(input, weight, stride, padding, dilation, channels_last)
    images, outs, height, width = output.shape
    pixels = images * height * width
    bits = (pixels, outs) if channels_last else (outs, pixels)
    saved = new_saved(output, bits, activation, save)
    columns, channels = weight.size(0) // groups, weight.size(1)
    k, c, r, s = weight.stride()
    spans = zip(output.shape[2:], input.shape[2:], weight.shape[2:], strict=True)
    y, x = (
        forward_gather(*span, *step)
        for span, step in zip(spans, zip(stride, padding, dilation, strict=True), strict=True)
    )
    convolve(
        strides_as(output, channels_last),
        input,
        weight,
        (columns * k, c, k, r, s),
        channels,
        columns,
        groups,
        y,
        x,
        bias=None if bias is None else bias.contiguous(),
        residual=residual,
        saved=saved if saved.numel() else None,
        activation=activation,
        parameter=parameter,
        channels_last=channels_last,
    )
    return output, saved


def conv2d_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    parameter: float,
    algorithm: str,
    channels_last: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight, bias and residual; None for what is not needed."""
    windows = stride, padding, dilation
    sizes = check_conv2d(input, weight, windows, groups, activation)
    check_conv2d_backward(grad, saved, input, sizes, activation, channels_last)
    needs_input, needs_weight, needs_bias, needs_residual = needs
    grad = strides_as(grad, channels_last)
    # The gradient of a residual is dz itself, which must not be the incoming gradient.
    has_dz = needs_residual or (activation != "none" and (needs_input or needs_weight))
    dz, bias_grad = activation_backward(
        grad, saved, activation, parameter, channels_last, has_dz, needs_bias
    )
    input_grad, weight_grad = None, None
    geometry = (*windows, groups)
    if needs_input:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        input_grad = torch.empty_like(input, memory_format=memory_format)
        input_gradient(dz, weight, input_grad, *geometry)
    if needs_weight:
        weight_grad = torch.empty_like(weight)
        weight_gradient(dz, input, weight_grad, *geometry)
    return input_grad, weight_grad, bias_grad, dz if needs_residual else None


register(
    "conv2d_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, "
    "int[] padding, int[] dilation, int groups, str activation, float parameter, str algorithm, "
    "bool channels_last, bool save) -> (Tensor, Tensor)",
    conv2d_forward,
)
register(
    "conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor saved, int[] stride, "
    "int[] padding, int[] dilation, int groups, str activation, float parameter, str algorithm, "
    "bool channels_last, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    conv2d_backward,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Named calls whose launches the offline compilation builds."""

    def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        return tensor.to(memory_format=torch.channels_last)

    def calls(
        name: str, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        bias = torch.empty(weight.size(0), dtype=x.dtype, device="meta")
        geometry = ([stride] * 2, [padding] * 2, [1, 1], groups)
        options = (*geometry, "relu", 0.0, "auto", True)
        y = new_output(x, weight, *geometry[:3], True)
        pixels, outs = y.numel() // y.size(1), y.size(1)
        saved = torch.empty(pixels, outs // 8, dtype=torch.uint8, device="meta")
        yield name, partial(conv2d_forward, x, weight, bias, y, *options, True)
        yield name, partial(conv2d_backward, y, x, weight, saved, *options, [True] * 4)

    yield from calls("bfloat16 64x56x56 3x3", new(32, 64, 56, 56), new(64, 64, 3, 3), 1, 1, 1)
    if every:
        yield from calls("bfloat16 3x224x224 7x7", new(32, 3, 224, 224), new(64, 3, 7, 7), 2, 3, 1)
        yield from calls("bfloat16 depthwise", new(32, 64, 56, 56), new(64, 1, 3, 3), 1, 1, 64)
        for dtype in (torch.float32, torch.float64):
            x, weight = new(32, 64, 56, 56, dtype=dtype), new(64, 64, 3, 3, dtype=dtype)
            yield from calls(f"{str(dtype).removeprefix('torch.')} 3x3", x, weight, 1, 1, 1)
        x, weight, y = new(32, 256, 56, 56), new(256, 256, 3, 3), new(32, 256, 56, 56)
        gather = forward_gather(56, 56, 3, 1, 1, 1)
        k, c, r, s = weight.stride()
        strides = (0, c, k, r, s)
        for config in candidates(target, torch.bfloat16, "ieee"):
            product = partial(convolve, y, x, weight, strides, 256, 256, 1, gather, gather)
            yield f"bfloat16 {config}", partial(product, config=config)
            sums = partial(weight_gradient, y, x, weight, (1, 1), (1, 1), (1, 1), 1)
            yield f"bfloat16 {config}", partial(sums, config)

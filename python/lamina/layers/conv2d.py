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

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina.activations import (
    ACTIVATIONS,
    BY_MASK,
    BY_OUTPUT,
    BY_PREACTIVATION,
    FINISH,
    Activation,
    parse_activation,
)
from lamina.backends import choice, choose, kernels
from lamina.checks import autocast_dtype, cast, check_alike, check_bias, check_floating
from lamina.double_backward import partial_gradients
from lamina.fakes import fake
from lamina.spec import FLOATS, Spec
from lamina.windows import Pair, as_pair, positions

ALGORITHMS = ("auto", "im2col", "winograd", "winograd4")
_WINOGRAD = ("winograd", "winograd4")


def reference(
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
) -> Tensor:
    """The definition; the algorithm changes roundings only."""
    name, parameter, after = parse_activation("conv2d", activation)
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    output = output if residual is None else output + residual
    output = ACTIVATIONS[name][0](output, parameter)
    return after(output) if after else output


class Options(NamedTuple):
    """What the kernels are told beside their tensors, in the order of the schemas."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    activation: str
    parameter: float
    algorithm: str
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def output_sizes(self, input: Tensor, weight: Tensor) -> list[int]:
        kernel = weight.shape[2:]
        return positions(input.shape[2:], kernel, self.dilation, self.padding, self.stride)

    def define(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        """The reference with these options."""
        geometry, activation = self[:4], (self.activation, self.parameter)
        return reference(input, weight, bias, *geometry, activation=activation, residual=residual)


@fake("conv2d_forward")
def _forward_fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *call: Any
) -> tuple[Tensor, Tensor]:
    options, save = Options(*call[:-1]), call[-1]
    images, outs = input.shape[0], weight.shape[0]
    height, width = options.output_sizes(input, weight)
    output = torch.empty(
        (images, outs, height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=options.memory_format,
    )
    if save and options.activation in BY_MASK:
        rows, bits = images * height * width, outs
        rows, bits = (rows, bits) if options.channels_last else (bits, rows)
        return output, input.new_empty(rows, (bits + 7) // 8, dtype=torch.uint8)
    if save and options.activation in BY_PREACTIVATION:
        return output, torch.empty_like(output)
    return output, input.new_empty(0, dtype=torch.uint8)


@fake("conv2d_backward")
def _backward_fake(
    grad: Tensor, input: Tensor, weight: Tensor, saved: Tensor, *call: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    memory_format, needs = Options(*call[:-1]).memory_format, call[-1]
    return (
        torch.empty_like(input, memory_format=memory_format) if needs[0] else None,
        torch.empty_like(weight) if needs[1] else None,
        weight.new_empty(weight.shape[0]) if needs[2] else None,
        torch.empty_like(grad, memory_format=memory_format) if needs[3] else None,
    )


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        options: Options,
        backend: str,
    ) -> Tensor:
        tensors = (input, weight, bias, residual)
        output, saved = kernels("conv2d", backend).forward(*tensors, *options, True)
        ctx.save_for_backward(*tensors, output if options.activation in BY_OUTPUT else saved)
        ctx.options, ctx.backend = options, backend
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, saved = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:4])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *partial_gradients(ctx.options.define, tensors, needs, grad), None, None
        grad = grad.contiguous(memory_format=ctx.options.memory_format)
        backward = kernels("conv2d", ctx.backend).backward
        return *backward(grad, *tensors[:2], saved, *ctx.options, needs), None, None


def _check_shapes(input: Tensor, weight: Tensor, bias: Tensor | None, groups: object) -> None:
    check_floating("conv2d", "input", input)
    check_floating("conv2d", "weight", weight)
    if weight.dim() != 4:
        raise ValueError(f"conv2d: weight must have 4 dimensions, got shape {tuple(weight.shape)}")
    if input.dim() not in (3, 4):
        raise ValueError(
            f"conv2d: input must be [N, C, H, W] or [C, H, W], got shape {tuple(input.shape)}"
        )
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"conv2d: groups must be an int, got {groups!r}")
    outs, ins = weight.shape[0], weight.shape[1] * groups
    if groups < 1 or outs % groups:
        raise ValueError(
            f"conv2d: groups must be positive and divide the {outs} out_channels of the weight of "
            f"shape {tuple(weight.shape)}, got {groups}"
        )
    if input.shape[-3] != ins:
        raise ValueError(
            f"conv2d: input of shape {tuple(input.shape)} must have {ins} channels: the weight has "
            f"shape {tuple(weight.shape)} and groups is {groups}"
        )
    check_alike("conv2d", "weight", weight, "input", input)
    check_bias("conv2d", bias, outs, "out_channels", weight, input)


def _check_algorithm(op: str, algorithm: object) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"{op}: algorithm is {algorithm!r}; it must be one of {', '.join(ALGORITHMS)}"
        )


def _pad(
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


def _is_channels_last(input: Tensor) -> bool:
    """Whether a pixel's channels lie side by side. A single number is in either layout."""
    channels, stride = input.shape[1], input.stride()
    return stride[1] == 1 and stride[3] >= channels and input.numel() != input.shape[0]


def _check_sizes(tensors: tuple[Tensor | None, ...], options: Options, batched: bool) -> None:
    input, weight, _, residual = tensors
    kernel, unit = tuple(weight.shape[2:]), options.stride + options.dilation == [1] * 4
    if options.algorithm in _WINOGRAD and not (kernel == (3, 3) and unit):
        raise ValueError(
            f"conv2d: algorithm {options.algorithm!r} needs a 3x3 kernel, stride 1 and dilation 1, "
            f"got kernel of size {kernel}, stride {options.stride} and dilation {options.dilation}"
        )
    sizes = options.output_sizes(input, weight)
    if min(sizes) < 1:
        raise ValueError(
            f"conv2d: kernel of size {kernel} with dilation {options.dilation} is larger than the "
            f"input of shape {tuple(input.shape)} with padding {options.padding}"
        )
    if residual is not None:
        check_floating("conv2d", "residual", residual)
        check_alike("conv2d", "residual", residual, "input", input)
        shape = (*(input.shape[:1] if batched else ()), weight.shape[0], *sizes)
        if residual.shape != shape:
            raise ValueError(
                f"conv2d: residual must have the shape of the result, {tuple(shape)}, "
                f"got {tuple(residual.shape)}"
            )


# Elements times out_channels below which ATen's shorter call wins.
_SMALL = 1 << 16
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
            input.numel() * outs >= _SMALL
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
            unasked: in float32 and in float64 its error is about 5 times im2col's. Algorithms are
            the CPU kernels': the others refuse all but "auto" and "im2col" by name, and the
            reference, which also runs calls too small for a kernel, runs as the definition.
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
    _check_shapes(input, weight, bias, groups)
    _check_algorithm("conv2d", algorithm)
    stride = as_pair("conv2d", "stride", stride, 1)
    dilation = as_pair("conv2d", "dilation", dilation, 1)
    batched = input.dim() == 4
    input = input if batched else input.unsqueeze(0)
    input, padding = _pad(input, weight, stride, padding, dilation)
    options = Options(
        stride, padding, dilation, groups, name, parameter, algorithm, _is_channels_last(input)
    )
    _check_sizes((input, weight, bias, residual), options, batched)
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
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Conv2d.apply(*tensors, options, chosen)
    return kernels("conv2d", chosen).forward(*tensors, *options, False)[0]


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` and the activation after it, as one layer.

    Arguments, initialisation and state_dict are nn.Conv2d's. `activation` and `algorithm` are those
    of `conv2d`, and so are shapes and errors. forward(input, residual) adds `residual` before the
    activation.
    """

    def __init__(
        self, *args: Any, activation: Activation = None, algorithm: str = "auto", **kwargs: Any
    ) -> None:
        parse_activation("Conv2d", activation)
        _check_algorithm("Conv2d", algorithm)
        super().__init__(*args, **kwargs)
        self.activation = activation
        self.algorithm = algorithm

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias, self.activation, residual)

    def _conv_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The layer with another weight, bias and activation, as a folded batch norm needs it."""
        padding = self.padding
        if self.padding_mode != "zeros":
            padded = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            # The circular mode forgets the layout.
            kept = input.dim() == 4 and _is_channels_last(input)
            layout = torch.channels_last if kept else torch.contiguous_format
            input, padding = padded.contiguous(memory_format=layout), 0
        return conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=activation,
            residual=residual,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            text += f", activation={self.activation!r}"
        return text + (f", algorithm={self.algorithm!r}" * (self.algorithm != "auto"))


class Conv2dReLU(Conv2d):
    """`Conv2d` with activation="relu"."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, activation="relu", **kwargs)


def _slower(
    backend: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *options: Any,
) -> str | None:
    options = Options(*options)
    if input.numel() * weight.shape[0] < _SMALL:
        return "below 2^16 elements times out_channels ATen's shorter call wins"
    kernel, one = tuple(weight.shape[2:]), (1, 1)
    measured = backend == "cpp" and input.dtype == torch.float32 and options.algorithm == "auto"
    if not measured or kernel == one or (options.groups > 1 and max(options.stride) == 1):
        return None
    # What csrc/conv2d/columns.h takes.
    few = input.shape[1] <= 4 and options.groups == 1 and input.is_contiguous()
    filters_3x3 = kernel == (3, 3) and tuple(options.stride) == tuple(options.dilation) == one
    if not few and not filters_3x3:
        return (
            "beside 1x1, 3x3 with stride 1 and inputs of up to 4 channels "
            "oneDNN's convolution is level or ahead"
        )
    return None


def _unsupported(backend: str, *call: object) -> list[str]:
    algorithm = Options(*call[4:]).algorithm
    if algorithm in _WINOGRAD and backend != "cpp":
        return [f"algorithm {algorithm!r} is the CPU's"]
    return []


SPEC = Spec(
    name="conv2d",
    functional=conv2d,
    reference=reference,
    slower=_slower,
    unsupported=_unsupported,
)

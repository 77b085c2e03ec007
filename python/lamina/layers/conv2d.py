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
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina.activations import (
    ACTIVATIONS,
    BY_MASK,
    BY_OUTPUT,
    BY_PREACTIVATION,
    Activation,
    parse_activation,
)
from lamina.backends import choose, kernels
from lamina.checks import autocast_dtype, cast, check_alike, check_floating
from lamina.double_backward import partial_gradients
from lamina.fakes import fake
from lamina.spec import BadInput, Sample, Spec, Workload

ALGORITHMS = ("auto", "im2col", "winograd")

Pair = int | Sequence[int]


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


def _output_sizes(
    input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    return [
        (input.shape[d + 2] + 2 * padding[d] - dilation[d] * (weight.shape[d + 2] - 1) - 1)
        // stride[d]
        + 1
        for d in (0, 1)
    ]


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


@fake("conv2d_forward")
def _forward_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    parameter: float,
    algorithm: str,
    channels_last: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    height, width = _output_sizes(input, weight, stride, padding, dilation)
    images, outs = input.shape[0], weight.shape[0]
    output = torch.empty(
        (images, outs, height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=_format(channels_last),
    )
    if save and activation in BY_MASK:
        rows, bits = images * height * width, outs
        rows, bits = (rows, bits) if channels_last else (bits, rows)
        return output, input.new_empty(rows, (bits + 7) // 8, dtype=torch.uint8)
    if save and activation in BY_PREACTIVATION:
        return output, torch.empty_like(output)
    return output, input.new_empty(0, dtype=torch.uint8)


@fake("conv2d_backward")
def _backward_fake(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    parameter: float,
    algorithm: str,
    channels_last: bool,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    memory_format = _format(channels_last)
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
        geometry: tuple[list[int], list[int], list[int], int],
        activation: str,
        parameter: float,
        algorithm: str,
        channels_last: bool,
        backend: str,
    ) -> Tensor:
        ctx.options = (*geometry, activation, parameter, algorithm, channels_last)
        ctx.backend = backend
        output, saved = kernels("conv2d", backend).forward(
            input, weight, bias, residual, *ctx.options, True
        )
        saved = output if activation in BY_OUTPUT else saved
        ctx.save_for_backward(input, weight, bias, residual, saved)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, residual, saved = ctx.saved_tensors
        *geometry, activation, parameter, _, channels_last = ctx.options
        needs = list(ctx.needs_input_grad[:4])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():

            def formula(input: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
                return reference(
                    input,
                    weight,
                    bias,
                    *geometry,
                    activation=(activation, parameter),
                    residual=residual,
                )

            grads = partial_gradients(formula, (input, weight, bias, residual), needs, grad)
        else:
            grad = grad.contiguous(memory_format=_format(channels_last))
            grads = kernels("conv2d", ctx.backend).backward(
                grad, input, weight, saved, *ctx.options, needs
            )
        return *grads, None, None, None, None, None, None


def as_pair(op: str, name: str, value: object, least: int) -> list[int]:
    """The vertical and the horizontal one of an argument that may be one number for both."""
    values = [value, value] if isinstance(value, int) else value
    if not isinstance(values, (tuple, list)) or not all(
        isinstance(v, int) and not isinstance(v, bool) for v in values
    ):
        raise TypeError(f"{op}: {name} must be an int or two ints, got {value!r}")
    values = list(values) * 2 if len(values) == 1 else list(values)
    if len(values) != 2:
        raise ValueError(f"{op}: {name} must be an int or two ints, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    return values


def _check_shapes(
    input: Tensor, weight: Tensor, bias: Tensor | None, groups: object, algorithm: str
) -> None:
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
    if bias is not None:
        check_floating("conv2d", "bias", bias)
        if bias.shape != (outs,):
            raise ValueError(
                f"conv2d: bias must have shape ({outs},), the out_channels of the weight of shape "
                f"{tuple(weight.shape)}, got {tuple(bias.shape)}"
            )
        check_alike("conv2d", "bias", bias, "input", input)
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"conv2d: algorithm is {algorithm!r}; it must be one of {', '.join(ALGORITHMS)}"
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
        algorithm: "im2col", the plain matrix product; "winograd", F(2x2, 3x3), for 3x3 kernels of
            stride and dilation 1; or "auto", which on the CPU takes winograd where it fits and has
            16 channels or more on both sides. Winograd spreads NaN and infinity to the pixels that
            share a tile of 2x2.
        backend: see lamina.backends; None lets Lamina choose.

    Returns [N, K, OH, OW] or [K, OH, OW], channels_last where input is, in the dtype of the input
    or autocast's. Raises ValueError where shapes, devices or names do not fit, TypeError where
    types do not.
    """
    name, parameter, after = parse_activation("conv2d", activation)
    if isinstance(input, Tensor) and (low := autocast_dtype(input)) is not None:
        input, weight, bias = cast(input, low), cast(weight, low), cast(bias, low)
        residual = cast(residual, low)
    _check_shapes(input, weight, bias, groups, algorithm)
    stride = as_pair("conv2d", "stride", stride, 1)
    dilation = as_pair("conv2d", "dilation", dilation, 1)
    batched = input.dim() == 4
    if not batched:
        input = input.unsqueeze(0)
    input, padding = _pad(input, weight, stride, padding, dilation)
    if algorithm == "winograd" and (weight.shape[2:] != (3, 3) or stride + dilation != [1] * 4):
        raise ValueError(
            f"conv2d: algorithm 'winograd' needs a 3x3 kernel, stride 1 and dilation 1, got kernel "
            f"of size {tuple(weight.shape[2:])}, stride {stride} and dilation {dilation}"
        )
    sizes = _output_sizes(input, weight, stride, padding, dilation)
    if min(sizes) < 1:
        raise ValueError(
            f"conv2d: kernel of size {tuple(weight.shape[2:])} with dilation {dilation} is larger "
            f"than the input of shape {tuple(input.shape)} with padding {padding}"
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
        residual = residual if batched else residual.unsqueeze(0)
    tensors = (input, weight, bias, residual)
    geometry = (stride, padding, dilation, groups)
    chosen = choose(SPEC, backend, tensors, (*geometry, name, algorithm))
    if chosen == "reference":
        output = reference(
            input, weight, bias, *geometry, activation=(name, parameter), residual=residual
        )
    else:
        output = _run(tensors, geometry, name, parameter, algorithm, chosen)
    output = output if batched else output.squeeze(0)
    return after(output) if after else output


def _run(
    tensors: tuple[Tensor | None, ...],
    geometry: tuple[list[int], list[int], list[int], int],
    activation: str,
    parameter: float,
    algorithm: str,
    backend: str,
) -> Tensor:
    input, weight, bias, residual = tensors
    channels_last = _is_channels_last(input)
    memory_format = _format(channels_last)
    input = input.contiguous(memory_format=memory_format)
    if residual is not None:
        residual = residual.contiguous(memory_format=memory_format)
    options = (activation, parameter, algorithm, channels_last)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Conv2d.apply(input, weight, bias, residual, geometry, *options, backend)
    forward = kernels("conv2d", backend).forward
    return forward(input, weight, bias, residual, *geometry, *options, False)[0]


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` and the activation after it, as one layer.

    Arguments, initialisation and state_dict are nn.Conv2d's. `activation` and `algorithm` are those
    of `conv2d`, and so are shapes and errors. forward(input, residual) adds `residual` before the
    activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        activation: Activation = None,
        algorithm: str = "auto",
    ) -> None:
        parse_activation("Conv2d", activation)
        if algorithm not in ALGORITHMS:
            raise ValueError(
                f"Conv2d: algorithm is {algorithm!r}; it must be one of {', '.join(ALGORITHMS)}"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.activation = activation
        self.algorithm = algorithm

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            padded = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            # The circular mode forgets the layout.
            kept = input.dim() == 4 and _is_channels_last(input)
            input, padding = padded.contiguous(memory_format=_format(kept)), 0
        return conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
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

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        algorithm: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            "relu",
            algorithm,
        )


def _slower(
    backend: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: tuple[int, int],
    *options: object,
) -> str | None:
    if input.numel() * weight.shape[0] < 1 << 16:
        return "below 2^16 elements times out_channels ATen's shorter call wins"
    training = torch.is_grad_enabled() and weight.requires_grad
    thin = weight.shape[1] < 8 and weight.shape[1] == input.shape[1]
    if backend == "cpp" and training and thin and input.dtype == torch.float32:
        return "with fewer than 8 channels oneDNN's gradient of the weight is faster"
    strided = max(stride) > 1 and weight.shape[-1] > 1
    if backend == "cpp" and strided and input.dtype == torch.float32 and options[-1] == "auto":
        return "with a stride oneDNN's convolution is level or ahead"
    return None


def _unsupported(backend: str, *call: object) -> list[str]:
    algorithm = call[-1]
    if algorithm == "winograd" and backend != "cpp":
        return ["algorithm 'winograd' is the CPU's"]
    return []


def _samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    def sample(
        name: str, input: Tensor, weight: tuple[int, ...], bias: bool = True, **kwargs: Any
    ) -> Sample:
        filters = draw(*weight) / math.prod(weight[1:]) ** 0.5
        tensors = (leaf(input), leaf(filters), leaf(draw(weight[0])) if bias else None)
        return Sample(name, tensors, {"activation": "relu", **kwargs})

    def image(*shape: int) -> Tensor:
        return draw(*shape).contiguous(memory_format=torch.channels_last)

    for made, layout in ((draw, "contiguous"), (image, "channels_last")):
        yield sample(f"3x3, {layout}", made(2, 3, 5, 4), (2, 3, 3, 3), padding=1)
        yield sample(
            f"all arguments, {layout}",
            made(2, 4, 9, 8),
            (6, 2, 3, 2),
            stride=(2, 1),
            padding=(2, 1),
            dilation=(1, 2),
            groups=2,
        )
        yield sample(f"depthwise, {layout}", made(1, 5, 6, 7), (5, 1, 3, 3), padding=1, groups=5)
        yield sample(f"1x1, {layout}", made(2, 9, 3, 5), (11, 9, 1, 1))
        yield sample(f"1x1 stride 2, {layout}", made(2, 4, 5, 5), (3, 4, 1, 1), stride=2)
        yield sample(f"more than a block, {layout}", made(3, 37, 9, 9), (67, 37, 3, 3), padding=1)
        yield sample(f"first layer, {layout}", made(2, 3, 23, 23), (8, 3, 7, 7), stride=2)
        yield sample(f"stride past kernel, {layout}", made(1, 2, 9, 9), (3, 2, 2, 2), stride=3)
        yield sample(f"padding past kernel, {layout}", made(1, 2, 3, 3), (2, 2, 2, 2), padding=3)
        yield sample(f"batch 0, {layout}", made(0, 3, 5, 5), (2, 3, 3, 3))
        for activation in ACTIVATIONS:
            yield sample(
                f"{activation}, {layout}", made(1, 2, 5, 5), (3, 2, 3, 3), activation=activation
            )
        residual = leaf(made(2, 3, 4, 4))
        for activation in ("relu", "silu", "none"):
            yield sample(
                f"residual {activation}, {layout}",
                made(2, 2, 4, 4),
                (3, 2, 3, 3),
                padding=1,
                activation=activation,
                residual=residual,
            )
        wild = made(1, 2, 8, 8)
        wild[0, 0, 0, 0], wild[0, 1, 2, 6], wild[0, 1, 5, 2] = float("nan"), float("inf"), 1e4
        yield sample(f"non-finite, {layout}", wild, (2, 2, 3, 3), algorithm="im2col")
    yield sample("winograd", draw(2, 3, 7, 6), (5, 3, 3, 3), padding=1, algorithm="winograd")
    yield sample("same", draw(1, 2, 5, 6), (2, 2, 1, 3), padding="same")
    yield sample("valid, no bias", draw(1, 2, 5, 6), (2, 2, 3, 3), False, padding="valid")
    yield sample("unbatched", draw(3, 5, 5), (2, 3, 3, 3))
    yield sample("callable", draw(1, 2, 4, 4), (2, 2, 3, 3), activation=torch.sin)
    yield sample("strided input", draw(2, 2, 8, 12)[..., ::2, ::3], (3, 2, 2, 2))
    yield sample("expanded input", draw(1, 1, 4, 4).expand(3, 2, 4, 4), (3, 2, 2, 2))
    weight = leaf(draw(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    for activation in ("relu", "leaky_relu"):
        tensors = (leaf(draw(2, 3, 5, 5)), weight)
        yield Sample(f"channels_last weight, {activation}", tensors, {"activation": activation})
    frozen, relu = draw(4, 3, 3, 3), {"activation": "relu"}
    yield Sample("frozen weight", (leaf(draw(2, 3, 5, 5)), frozen), relu)
    yield Sample("frozen input", (draw(2, 3, 5, 5), leaf(frozen), leaf(draw(4))), relu)
    yield Sample("only bias", (draw(2, 3, 5, 5), frozen, leaf(draw(4))), relu)


def _bad_inputs(device: torch.device) -> Iterator[BadInput]:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    x, w, b = ones(1, 3, 5, 5), ones(4, 3, 3, 3), ones(4)

    def bad(name: str, match: str, *args: Any, error: type = ValueError, **kwargs: Any) -> BadInput:
        return BadInput(name, args or (x, w, b), error, match, kwargs)

    yield bad("channels", r"\(1, 2, 5, 5\) must have 3 channels", ones(1, 2, 5, 5), w)
    yield bad("2-D input", r"must be \[N, C, H, W\]", ones(5, 5), w)
    yield bad("3-D weight", "weight must have 4 dimensions", x, ones(4, 3, 3))
    yield bad("bias size", r"bias must have shape \(4,\).*\(3,\)", x, w, ones(3))
    yield bad("groups", "groups must be positive and divide the 4", groups=3)
    yield bad("no groups", "groups must be positive", groups=0)
    yield bad("groups type", "groups must be an int", groups=1.0, error=TypeError)
    yield bad("stride", "stride must be at least 1, got 0", stride=0)
    yield bad("dilation", r"dilation must be at least 1, got \(1, -1\)", dilation=(1, -1))
    yield bad("padding", "padding must be at least 0, got -1", padding=-1)
    yield bad("three strides", "stride must be an int or two ints", stride=(1, 1, 1))
    yield bad("float stride", "stride must be an int or two", stride=1.5, error=TypeError)
    yield bad("padding name", "padding is 'full'; it must be 'same'", padding="full")
    yield bad("same, stride", "padding 'same' needs stride 1", padding="same", stride=2)
    yield bad("large kernel", r"kernel of size \(3, 3\) with dilation \[3, 3\]", dilation=3)
    residual = ones(1, 4, 5, 5)
    yield bad("residual", r"shape of the result, \(1, 4, 3, 3\), got", residual=residual)
    yield bad("dtypes", "weight is torch.float64 and input", x, w.double(), error=TypeError)
    yield bad("bias dtype", "bias is torch.float16", x, w, b.half(), error=TypeError)
    yield bad("integers", "input must be of a floating", x.long(), w, error=TypeError)
    yield bad("devices", "weight is on meta and input on", x, w.to("meta"))
    yield bad("list", "input must be a Tensor, got list", [1.0], w, error=TypeError)
    yield bad("name", "activation is 'rleu'; the fused ones are", activation="rleu")
    fixed = {"algorithm": "winograd", "stride": 2}
    yield bad("winograd", r"'winograd' needs a 3x3 kernel.*stride \[2, 2\]", **fixed)
    yield bad("algorithm", "algorithm is 'fft'; it must be one of auto", algorithm="fft")


def _workload(
    images: int, ins: int, outs: int, size: int, kernel: int | tuple[int, int], stride: int = 1
) -> Workload:
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    name = f"{images}x{ins}x{size}² {kernel[0]}x{kernel[1]} -> {outs}"
    name += f" stride {stride}" if stride > 1 else ""
    padding = tuple(k // 2 for k in kernel)

    def build(dtype: torch.dtype, device: torch.device) -> Sample:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype, device=device)

        fan_in = ins * kernel[0] * kernel[1]
        tensors = (draw(images, ins, size, size), draw(outs, ins, *kernel) / fan_in**0.5)
        tensors = tuple(t.requires_grad_() for t in (*tensors, draw(outs)))
        tensors[0].requires_grad_(ins != 3)  # Nothing trains the pixels of an image.
        return Sample(name, tensors, {"stride": stride, "padding": padding, "activation": "relu"})

    side = (size - 1) // stride + 1
    outputs = images * outs * side * side
    columns = ins * kernel[0] * kernel[1]
    elements = images * ins * size * size + outs * columns + outputs
    return Workload(name, build, flops=2 * outputs * columns, elements=elements)


RESNET18 = (
    (3, 64, 224, 7, 2),
    (64, 64, 56, 3),
    (64, 128, 56, 3, 2),
    (64, 128, 56, 1, 2),
    (128, 128, 28, 3),
    (128, 256, 28, 3, 2),
    (256, 256, 14, 3),
    (256, 512, 14, 3, 2),
    (512, 512, 7, 3),
)
RESNET50 = (
    (64, 64, 56, 1),
    (64, 256, 56, 1),
    (256, 64, 56, 1),
    (256, 512, 56, 1, 2),
    (512, 128, 28, 1),
    (128, 512, 28, 1),
    (1024, 256, 14, 1),
    (256, 1024, 14, 1),
    (2048, 512, 7, 1),
    (512, 2048, 7, 1),
)
INCEPTION = ((192, 64, 28, 1), (96, 128, 28, 3), (16, 32, 28, 5), (128, 128, 17, (1, 7)))

SPEC = Spec(
    name="conv2d",
    functional=conv2d,
    reference=reference,
    samples=_samples,
    bad_inputs=_bad_inputs,
    workloads=(
        *(_workload(8, *shape) for shape in (*RESNET18, *RESNET50, *INCEPTION)),
        *(_workload(16, *shape) for shape in RESNET18),
        _workload(1, 8, 8, 8, 3),
    ),
    slower=_slower,
    unsupported=_unsupported,
)

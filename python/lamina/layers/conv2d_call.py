"""The call of conv2d as kernels and autograd see it: options, shapes of results, backward pass."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.activations import (
    ACTIVATIONS,
    BY_MASK,
    BY_OUTPUT,
    BY_PREACTIVATION,
    Activation,
    parse_activation,
)
from lamina.backends import kernels
from lamina.double_backward import partial_gradients
from lamina.fakes import fake, flops
from lamina.windows import Pair, positions


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


@flops("conv2d_forward")
def _forward_flops(input: torch.Size, weight: torch.Size, *call: Any, out_shape: Any) -> int:
    return 2 * math.prod(out_shape[0]) * math.prod(weight[1:])


@flops("conv2d_backward")
def _backward_flops(
    grad: torch.Size, input: torch.Size, weight: torch.Size, *call: Any, out_shape: Any
) -> int:
    return 2 * math.prod(grad) * math.prod(weight[1:]) * sum(call[-1][:2])


class Conv2dFunction(torch.autograd.Function):
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

"""What the launchers demand of their arguments, as the C++ glue does (csrc/common/check.h).

The functional forms have checked a call in its user's words; these are for callers of torch.ops,
such as exported programs. ValueError says what does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from lamina.windows import positions

from .epilogue import ACTIVATIONS, MASKED


def _demand(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise ValueError(f"{name} must {what}")


def _sizes(name: str, tensor: Tensor, *sizes: int) -> None:
    given = tuple(tensor.shape)
    _demand(given == sizes, name, f"have the sizes {list(sizes)}, got {list(given)}")


def _alike(name: str, tensor: Tensor, main: Tensor, *sizes: int) -> None:
    """A tensor that is computed with, beside `main`."""
    same = tensor.dtype == main.dtype and tensor.device == main.device
    _demand(same, name, "have the dtype and the device of the other tensors")
    _sizes(name, tensor, *sizes)


def _mask(name: str, mask: Tensor, main: Tensor, *sizes: int) -> None:
    same = mask.dtype == torch.uint8 and mask.device == main.device
    _demand(same, name, "be uint8, on the device of the other tensors")
    _sizes(name, mask, *sizes)
    _demand(mask.is_contiguous(), name, "be contiguous")


def check_activation(activation: str) -> None:
    """One of the fused activations."""
    known = ", ".join(ACTIVATIONS)
    _demand(activation in ACTIVATIONS, "activation", f"be one of {known}, got {activation!r}")


def check_dense(name: str, tensor: Tensor) -> None:
    """Elements that fill a block of memory, in whatever order of dimensions."""
    _demand(torch.empty_like(tensor).stride() == tensor.stride(), name, "fill its memory")


def check_threshold_backward(grad: Tensor, mask: Tensor) -> None:
    """A dense gradient, and a bit for each of its elements."""
    check_dense("grad", grad)
    _mask("mask", mask, grad, (grad.numel() + 7) // 8)


def check_squash(input: Tensor, grad: Tensor | None = None) -> None:
    """Vectors along the last dimension."""
    _demand(input.dim() > 0, "input", "have a dimension")
    if grad is not None:
        _alike("grad", grad, input, *input.shape)


def check_linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """input [..., K], weight [N, K], bias [N]."""
    check_activation(activation)
    _demand(input.dim() > 0, "input", "have a dimension")
    _demand(weight.dim() == 2, "weight", f"be [N, K], got {list(weight.shape)}")
    _alike("weight", weight, input, weight.size(0), input.size(-1))
    if bias is not None:
        _alike("bias", bias, input, weight.size(0))


def check_linear_backward(
    grad: Tensor, input: Tensor, weight: Tensor, saved: Tensor, activation: str
) -> None:
    """grad [..., N], and saved what the forward pass gave."""
    check_linear(input, weight, None, activation)
    sizes = *input.shape[:-1], weight.size(0)
    _alike("grad", grad, input, *sizes)
    if activation in MASKED:
        _mask("saved", saved, input, prod(sizes[:-1]), (sizes[-1] + 7) // 8)
    elif activation != "none":
        _alike("saved", saved, input, *sizes)
        _demand(saved.is_contiguous(), "saved", "be contiguous")


Windows = tuple[Sequence[int], Sequence[int], Sequence[int]]  # stride, padding, dilation


def reach(tensor: Tensor, first: int, padding: Sequence[int] = (0, 0)) -> int:
    """How many elements apart those lie that dimensions from `first` on lead to, padding too."""
    sizes = (*tensor.shape[:2], tensor.size(2) + 2 * padding[0], tensor.size(3) + 2 * padding[1])
    steps = zip(sizes[first:], tensor.stride()[first:], strict=True)
    return sum((size - 1) * stride for size, stride in steps)


def check_conv2d(
    input: Tensor, weight: Tensor, windows: Windows, groups: int, activation: str
) -> tuple[int, ...]:
    """input [N, C, H, W], weight [K, C / groups, R, S]; returns the sizes of the output."""
    check_activation(activation)
    _demand(input.dim() == weight.dim() == 4, "input and weight", "have 4 dimensions")
    for name, pair, least in zip(("stride", "padding", "dilation"), windows, (1, 0, 1)):
        fits = len(pair) == 2 and least <= min(pair) and max(pair) < 1 << 31
        _demand(fits, name, f"be two numbers from {least} to {(1 << 31) - 1}, got {list(pair)}")
    outs, _, *kernel = weight.shape
    _demand(groups > 0 and outs > 0 and outs % groups == 0, "groups", "divide the filters")
    _alike("weight", weight, input, outs, input.size(1) // groups, *kernel)
    _demand(input.size(1) > 0 and input.size(1) % groups == 0, "groups", "divide the channels")
    stride, padding, dilation = windows
    sizes = positions(input.shape[2:], kernel, dilation, padding, stride)
    fits = min(kernel) > 0 and min(sizes) > 0
    _demand(fits, "weight", "have taps, not more than the padded input has pixels")
    # Offsets inside of them have 32 bits.
    near = max(reach(input, 1, padding), reach(weight, 0), outs * prod(sizes)) < 1 << 31
    _demand(near, "an image, and the weight", "lie within 2^31 elements")
    return input.size(0), outs, *sizes


def _like_output(
    name: str, tensor: Tensor, input: Tensor, sizes: tuple[int, ...], channels_last: bool
) -> None:
    """A tensor of the sizes and in the layout of conv2d's output."""
    _alike(name, tensor, input, *sizes)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    _demand(tensor.is_contiguous(memory_format=layout), name, f"be in {layout}")


def check_conv2d_added(
    bias: Tensor | None,
    residual: Tensor | None,
    input: Tensor,
    sizes: tuple[int, ...],
    channels_last: bool,
) -> None:
    """bias [K], residual like the output, whose sizes check_conv2d gave."""
    if bias is not None:
        _alike("bias", bias, input, sizes[1])
    if residual is not None:
        _like_output("residual", residual, input, sizes, channels_last)


def check_conv2d_backward(
    grad: Tensor,
    saved: Tensor,
    input: Tensor,
    sizes: tuple[int, ...],
    activation: str,
    channels_last: bool,
) -> None:
    """grad like the output, whose sizes check_conv2d gave; saved what the forward pass gave."""
    _like_output("grad", grad, input, sizes, channels_last)
    if activation in MASKED:
        pixels = sizes[0] * sizes[2] * sizes[3]
        rows, bits = (pixels, sizes[1]) if channels_last else (sizes[1], pixels)
        _mask("saved", saved, input, rows, (bits + 7) // 8)
    elif activation != "none":
        _like_output("saved", saved, input, sizes, channels_last)


def check_routing(u: Tensor, weight: Tensor, prior: Tensor | None, mask: Tensor | None) -> None:
    """u [B, I, D], weight [O, I, E, D] or [O, E, D], prior [(B,) I, O], mask [(B,) I]."""
    _demand(u.dim() == 3, "u", f"be [B, I, D], got {list(u.shape)}")
    four = weight.dim() == 4
    _demand(four or weight.dim() == 3, "weight", "be [O, I, E, D] or [O, E, D]")
    (b, i, d), (o, e) = u.shape, (weight.size(0), weight.size(-2))
    _alike("weight", weight, u, *((o, i, e, d) if four else (o, e, d)))
    if prior is not None:
        _alike("prior", prior, u, *((i, o) if prior.dim() == 2 else (b, i, o)))
    if mask is not None:
        _alike("mask", mask, u, *((i,) if mask.dim() == 1 else (b, i)))


def check_vectors(name: str, vectors: Tensor, u: Tensor, weight: Tensor) -> None:
    """[B, O, E]."""
    _alike(name, vectors, u, u.size(0), weight.size(0), weight.size(-2))


def check_dynamic_routing(u: Tensor, weight: Tensor, bias: Tensor | None, iterations: int) -> None:
    """What only dynamic_routing takes: a bias [O, E] and iterations; after check_routing."""
    if bias is not None:
        _alike("bias", bias, u, weight.size(0), weight.size(-2))
        _demand(bias.is_contiguous(), "bias", "be contiguous")
    _demand(0 < iterations < 1 << 16, "iterations", f"be positive, got {iterations}")


def check_dynamic_routing_backward(
    grad: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor
) -> None:
    """grad [B, O, E] and s [iterations, B, O, E]; after check_routing."""
    _demand(s.dim() == 4, "s", f"be [iterations, B, O, E], got {list(s.shape)}")
    check_dynamic_routing(u, weight, bias, s.size(0))
    check_vectors("grad", grad, u, weight)
    _alike("s", s, u, s.size(0), *grad.shape)
    _demand(s.is_contiguous(), "s", "be contiguous")

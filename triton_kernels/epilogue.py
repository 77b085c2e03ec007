"""What happens to a tile in registers: activations, their derivatives, and masks of one bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Their derivative is read from one bit an element, from the pre-activation, or from the output.
MASKED = ("relu", "threshold", "leaky_relu")
FROM_INPUT = ("gelu", "gelu_tanh", "silu")
FROM_OUTPUT = ("tanh", "sigmoid")
ACTIVATIONS = ("none", *MASKED, *FROM_INPUT, *FROM_OUTPUT)


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """The type that sums are kept in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def new_saved(output: Tensor, bits: tuple[int, int], activation: str, save: bool) -> Tensor:
    """Room for what the backward needs: a mask of rows of bits, the pre-activation, or nothing."""
    if save and activation in MASKED:
        return output.new_empty((bits[0], (bits[1] + 7) // 8), dtype=torch.uint8)
    if save and activation in FROM_INPUT:
        return torch.empty_like(output)
    return output.new_empty(0, dtype=torch.uint8)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # Near 0 the difference cancels: there Lambert's continued fraction, cut where it
    # is exact to the dtype for |x| < 5/8. (libdevice has tanh, but not in the interpreter.)
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.abs(x)))
    z = tl.minimum(x * x, 0.5)
    if x.dtype == tl.float64:
        top = 2027025.0 + z * (270270.0 + z * (6930.0 + z * 36.0))
        bottom = 2027025.0 + z * (945945.0 + z * (51975.0 + z * (630.0 + z)))
    else:
        top = 945.0 + z * (105.0 + z)
        bottom = 945.0 + z * (420.0 + z * 15.0)
    return tl.where(tl.abs(x) < 0.625, x * (top / bottom), tl.where(x < 0, -far, far))


@triton.jit
def above(z, parameter, ACTIVATION: tl.constexpr):
    """Where the derivative of a masked activation is 1. At NaN torch gives 1, but a leaky slope."""
    if ACTIVATION == "leaky_relu":
        keep = z > 0.0
    elif ACTIVATION == "threshold":
        keep = (z <= tl.full([1, 1], parameter, z.dtype)) == 0
    else:
        keep = (z <= 0.0) == 0
    return keep


@triton.jit
def activate(z, parameter, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu" or ACTIVATION == "threshold":
        z = tl.where(above(z, parameter, ACTIVATION), z, 0.0)
    elif ACTIVATION == "leaky_relu":
        slope = tl.full([1, 1], parameter, z.dtype)
        z = tl.where(above(z, parameter, ACTIVATION), z, z * slope)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.math.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(x)) / 2 is sigmoid(2 x), which does not cancel.
        z = z * sigmoid(1.5957691216057308 * z * (1.0 + 0.044715 * z * z))
    elif ACTIVATION == "silu":
        z = z * sigmoid(z)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    elif ACTIVATION == "sigmoid":
        z = sigmoid(z)
    return z


@triton.jit
def derivative(saved, ACTIVATION: tl.constexpr):
    """The derivative from the pre-activation, or for tanh and sigmoid from the output."""
    if ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * saved * saved)
        slope = 0.5 * (1.0 + tl.math.erf(saved * 0.7071067811865476)) + saved * density
    elif ACTIVATION == "gelu_tanh":
        square = saved * saved
        u = 1.5957691216057308 * saved * (1.0 + 0.044715 * square)
        e = tl.exp(-tl.abs(u))
        rate = 1.5957691216057308 * (1.0 + 0.134145 * square)
        slope = (tl.where(u < 0, e, 1.0) + saved * rate * e / (1.0 + e)) / (1.0 + e)
    elif ACTIVATION == "silu":
        s = sigmoid(saved)
        slope = s * (1.0 + saved * (1.0 - s))
    elif ACTIVATION == "tanh":
        slope = 1.0 - saved * saved
    else:
        tl.static_assert(ACTIVATION == "sigmoid")
        slope = saved * (1.0 - saved)
    return slope


@triton.jit
def packed(keep, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] truth values -> [ROWS, COLUMNS / 8] bytes; column n is bit n % 8."""
    bits = tl.reshape(tl.where(keep, 1, 0), (ROWS, COLUMNS // 8, 8))
    return tl.sum(bits << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)

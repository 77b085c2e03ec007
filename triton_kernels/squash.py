"""squash: v = f(q) s over the last dimension, q = |s|^2 (Sabour, Frosst, Hinton 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contracts import check_squash
from .epilogue import compute_type, tanh
from .launch import Target, launch, refusals, register

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LONGEST = 8192


@triton.jit
def squash_factors(q, eps, KIND: tl.constexpr):
    """f(q), and h = 2 df/dq: v = f s, and the gradient of s is f g + h <s, g> s; h = 0 at s = 0."""
    n = tl.sqrt(q)
    some = n > 0.0
    divisor = tl.where(some, n, 1.0)
    one = 1.0 / (1.0 + q)
    if KIND == "exact":
        f = n * one
        h = (1.0 - q) * one * one / divisor
    elif KIND == "sqrt_eps":
        m = tl.where(some, tl.sqrt(q + eps), 1.0)
        f = q * one / m
        h = (2.0 * one - q / (m * m)) * one / m
    elif KIND == "norm_eps":
        m = tl.where(some, n + eps, 1.0)
        f = q * one / m
        h = (2.0 * one - n / m) * one / m
    else:
        tl.static_assert(KIND == "exp")
        m = tl.where(some, n + eps, 1.0)
        # 1 - e^-n without cancellation.
        t = tanh(0.5 * n)
        rise = 2.0 * t / (1.0 + t)
        f = rise / m
        h = ((1.0 - rise) - f) / (m * divisor)
        f = tl.where(some | (eps != 0.0), f, 1.0)
    return f, tl.where(some, h, 0.0)


@triton.jit
def squash_kernel(
    input, output, rows, E, eps: tl.float64,
    KIND: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, BLOCK_E)
    inside = (row < rows)[:, None] & (e < E)[None, :]
    offset = row[:, None] * E + e[None, :]
    s = tl.load(input + offset, mask=inside, other=0.0).to(COMPUTE)
    f, _ = squash_factors(tl.sum(s * s, axis=1), tl.full([1], eps, COMPUTE), KIND)
    tl.store(output + offset, (f[:, None] * s).to(output.dtype.element_ty), mask=inside)


@triton.jit
def squash_backward_kernel(
    grad, input, output, rows, E, eps: tl.float64,
    KIND: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, BLOCK_E)
    inside = (row < rows)[:, None] & (e < E)[None, :]
    offset = row[:, None] * E + e[None, :]
    s = tl.load(input + offset, mask=inside, other=0.0).to(COMPUTE)
    g = tl.load(grad + offset, mask=inside, other=0.0).to(COMPUTE)
    f, h = squash_factors(tl.sum(s * s, axis=1), tl.full([1], eps, COMPUTE), KIND)
    along = h * tl.sum(s * g, axis=1)
    gradient = f[:, None] * g + along[:, None] * s
    tl.store(output + offset, gradient.to(output.dtype.element_ty), mask=inside)


def rows_of(tensor: Tensor) -> dict[str, int]:
    """How rows of the last dimension are given to programs."""
    block = triton.next_power_of_2(max(1, tensor.size(-1)))
    return {"ROWS": max(1, 1024 // block), "BLOCK_E": block}


def unsupported(input: Tensor, *_: object) -> list[str]:
    """Reasons why these kernels cannot take `input`; empty where they can."""
    reasons = refusals(input, DTYPES)
    if input.size(-1) > LONGEST:
        reasons.append(f"a vector of {input.size(-1)} is longer than {LONGEST}")
    return reasons


def _launch_rows(
    kernel: triton.JITFunction, tensors: tuple[Tensor, ...], kind: str, eps: float
) -> Tensor:
    """kernel(*tensors, output, ...) on contiguous tensors of one shape; returns the output."""
    output = torch.empty_like(tensors[0])
    if output.numel():
        tiling, rows = rows_of(output), output.numel() // output.size(-1)
        launch(
            kernel,
            triton.cdiv(rows, tiling["ROWS"]),
            *(*tensors, output, rows, output.size(-1), eps),
            KIND=kind,
            COMPUTE=compute_type(output.dtype),
            **tiling,
        )
    return output


def squash_forward(input: Tensor, kind: str, eps: float) -> Tensor:
    """f(|s|^2) s for the vectors along the last dimension; contiguous."""
    check_squash(input)
    return _launch_rows(squash_kernel, (input.contiguous(),), kind, eps)


def squash_backward(grad: Tensor, input: Tensor, kind: str, eps: float) -> Tensor:
    check_squash(input, grad)
    return _launch_rows(squash_backward_kernel, (grad.contiguous(), input.contiguous()), kind, eps)


register(
    "squash_forward(Tensor input, str kind, float eps) -> Tensor",
    squash_forward,
)
register(
    "squash_backward(Tensor grad, Tensor input, str kind, float eps) -> Tensor",
    squash_backward,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Named calls whose launches the offline compilation builds."""
    s = torch.empty(128, 10, 16, device="meta")
    for kind in ("exact", "sqrt_eps", "norm_eps", "exp") if every else ("exp",):
        yield kind, partial(squash_forward, s, kind, 0.5)
        yield kind, partial(squash_backward, s, s, kind, 0.5)

"""dZ = dY * act'(saved), and its sums by channel, which are the bias gradient, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import compute_type, derivative
from .launch import launch, target_of
from .sums import ordered_sum


@triton.jit
def conv2d_activation_backward_kernel(
    grad, saved, dz, sums, P, PIXELS, K, P_PER_PART, stride_n, stride_p, stride_k,
    parameter: tl.float64,
    ACTIVATION: tl.constexpr, HAS_DZ: tl.constexpr, HAS_SUM: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dz = grad * act'(saved), and its sums over P_PER_PART pixels, in one pass."""
    tiles_n = tl.cdiv(K, BLOCK_N)
    part = (tl.program_id(0) // tiles_n).to(tl.int64)
    k = (tl.program_id(0) % tiles_n * BLOCK_N).to(tl.int64) + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    for step in tl.range(0, P_PER_PART, BLOCK_M):
        p = part * P_PER_PART + step + tl.arange(0, BLOCK_M)
        inside = (p < P)[:, None] & (k < K)[None, :]
        pixel = p // PIXELS * stride_n + p % PIXELS * stride_p
        offset = pixel[:, None] + (k * stride_k)[None, :]
        g = tl.load(grad + offset, mask=inside, other=0.0).to(COMPUTE)
        if ACTIVATION == "relu" or ACTIVATION == "threshold" or ACTIVATION == "leaky_relu":
            if CHANNELS_LAST:
                place = p[:, None] * tl.cdiv(K, 8) + (k // 8)[None, :]
                bit = (k % 8)[None, :]
            else:
                place = k[None, :] * tl.cdiv(P, 8) + (p // 8)[:, None]
                bit = (p % 8)[:, None]
            octet = tl.load(saved + place, mask=inside, other=0).to(tl.int32)
            keep = ((octet >> bit.to(tl.int32)) & 1) != 0
            if ACTIVATION == "leaky_relu":
                g = tl.where(keep, g, g * tl.full([1, 1], parameter, COMPUTE))
            else:
                g = tl.where(keep, g, 0.0)
        elif ACTIVATION != "none":
            z = tl.load(saved + offset, mask=inside, other=0.0).to(COMPUTE)
            g *= derivative(z, ACTIVATION)
        if HAS_DZ:
            tl.store(dz + offset, g.to(dz.dtype.element_ty), mask=inside)
        if HAS_SUM:
            total += g
    if HAS_SUM:
        tl.store(sums + part * K + k, tl.sum(total, axis=0), mask=k < K)


def activation_backward(
    grad: Tensor,
    saved: Tensor,
    activation: str,
    parameter: float,
    channels_last: bool,
    has_dz: bool,
    has_sum: bool,
) -> tuple[Tensor, Tensor | None]:
    """dz = grad * act'(saved), which is `grad` itself without has_dz, and its sum by channel."""
    images, outs, height, width = grad.shape
    pixels = images * height * width
    dz = torch.empty_like(grad) if has_dz else grad
    bias = grad.new_empty(outs) if has_sum else None
    if not (has_dz or has_sum):
        return dz, bias
    block_m, block_n = (16, 128) if channels_last else (128, 16)
    if target_of(grad).interpreted:
        block_m, block_n = 16, 16
    tiles = triton.cdiv(outs, block_n)
    part = block_m * max(1, min(32, pixels * tiles // (block_m * 512)))
    parts = triton.cdiv(pixels, part)
    sums = torch.float64 if grad.dtype == torch.float64 else torch.float32
    partial_sums = grad.new_empty((parts, outs), dtype=sums) if has_sum else grad
    stride_n, stride_k, _, stride_p = grad.stride()
    launch(
        conv2d_activation_backward_kernel,
        parts * tiles,
        *(grad, saved, dz, partial_sums, pixels, height * width, outs, part),
        *(stride_n, stride_p, stride_k, parameter),
        ACTIVATION=activation,
        HAS_DZ=has_dz,
        HAS_SUM=has_sum,
        CHANNELS_LAST=channels_last,
        COMPUTE=compute_type(grad.dtype),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
    )
    if bias is not None:
        ordered_sum(partial_sums, bias)
    return dz, bias

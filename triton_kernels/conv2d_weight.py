"""Backward-weight: sums over parts of the pixels, then their sum in order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .conv2d_config import choose
from .conv2d_gather import forward_gather, narrow
from .epilogue import compute_type
from .gemm_config import GemmConfig, precision_of
from .launch import launch, target_of


@triton.jit
def conv2d_weight_gemm_kernel(
    dz, source, sums, P, P_PER_PART, HEIGHT, WIDTH, SOURCE_HEIGHT, SOURCE_WIDTH, K, CHANNELS,
    taps_y, taps_x, y_scale, y_first, y_step, x_scale, x_first, x_step,
    dz_n, dz_c, dz_y, dz_x, source_n, source_c, source_y, source_x, groups,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """sums[part, group, k, (tap, channel)] = the sum of dz * source over a part of the pixels."""
    N = taps_y * taps_x * CHANNELS
    tiles_m = tl.cdiv(K, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    batch = tl.program_id(0) // (tiles_m * tiles_n)
    group = (batch % groups).to(tl.int64)
    part = batch // groups
    k = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    index = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = index % CHANNELS
    tap = index // CHANNELS
    dy = tap // taps_x * y_step + y_first
    dx = tap % taps_x * x_step + x_first
    columns = (group * CHANNELS + channel) * source_c
    rows = (group * K + k) * dz_c
    total = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    start = part * P_PER_PART
    end = tl.minimum(start + P_PER_PART, P)
    for first in tl.range(start, end, BLOCK_K):
        p = first + tl.arange(0, BLOCK_K)
        n = (p // (HEIGHT * WIDTH)).to(tl.int64)
        i = p // WIDTH % HEIGHT
        l = p % WIDTH
        pixel = n * dz_n + i.to(tl.int64) * dz_y + l.to(tl.int64) * dz_x
        a = tl.load(
            dz + rows[:, None] + pixel[None, :],
            mask=(k < K)[:, None] & (p < end)[None, :],
            other=0.0,
        )
        sy = (i * y_scale)[:, None] + dy[None, :]
        sx = (l * x_scale)[:, None] + dx[None, :]
        inside = (sy >= 0) & (sy < SOURCE_HEIGHT) & (sx >= 0) & (sx < SOURCE_WIDTH)
        inside = inside & (p < end)[:, None] & (index < N)[None, :]
        place = sy.to(tl.int64) * source_y + sx.to(tl.int64) * source_x
        b = tl.load(
            source + (n * source_n)[:, None] + place + columns[None, :], mask=inside, other=0.0
        )
        if WIDEN:
            a = a.to(COMPUTE)
            b = b.to(COMPUTE)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=COMPUTE)
    offset = ((part * groups + group) * K + k)[:, None] * N + index[None, :]
    tl.store(sums + offset, total, mask=(k < K)[:, None] & (index < N)[None, :])


@triton.jit
def conv2d_weight_direct_kernel(
    dz, source, sums, P, P_PER_PART, HEIGHT, WIDTH, SOURCE_HEIGHT, SOURCE_WIDTH, K, CHANNELS,
    taps_y, taps_x, y_scale, y_first, y_step, x_scale, x_first, x_step,
    dz_n, dz_c, dz_y, dz_x, source_n, source_c, source_y, source_x, groups,
    COMPUTE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The same for narrow groups: a program takes one tap and channel of BLOCK_N out-channels."""
    N = taps_y * taps_x * CHANNELS
    tiles = tl.cdiv(groups * K, BLOCK_N)
    part = (tl.program_id(0) // (tiles * N)).to(tl.int64)
    index = tl.program_id(0) // tiles % N
    channel = index % CHANNELS
    dy = index // CHANNELS // taps_x * y_step + y_first
    dx = index // CHANNELS % taps_x * x_step + x_first
    k = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = ((k // K).to(tl.int64) * CHANNELS + channel) * source_c
    total = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    start = part * P_PER_PART
    end = tl.minimum(start + P_PER_PART, P)
    for first in tl.range(start, end, BLOCK_M):
        p = first + tl.arange(0, BLOCK_M)
        n = (p // (HEIGHT * WIDTH)).to(tl.int64)
        i = p // WIDTH % HEIGHT
        l = p % WIDTH
        pixel = n * dz_n + i.to(tl.int64) * dz_y + l.to(tl.int64) * dz_x
        inside = (p < end)[:, None] & (k < groups * K)[None, :]
        a = tl.load(dz + pixel[:, None] + (k.to(tl.int64) * dz_c)[None, :], mask=inside, other=0.0)
        sy = i * y_scale + dy
        sx = l * x_scale + dx
        seen = (sy >= 0) & (sy < SOURCE_HEIGHT) & (sx >= 0) & (sx < SOURCE_WIDTH)
        place = n * source_n + sy.to(tl.int64) * source_y + sx.to(tl.int64) * source_x
        b = tl.load(
            source + place[:, None] + columns[None, :], mask=inside & seen[:, None], other=0.0
        )
        total += a.to(COMPUTE) * b.to(COMPUTE)
    offset = (part * groups * K + k) * N + index
    tl.store(sums + offset, tl.sum(total, axis=0), mask=k < groups * K)


@triton.jit
def conv2d_weight_sum_kernel(
    sums, output, parts, size, CHANNELS, taps_y, taps_x,
    output_k, output_c, output_y, output_x, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the parts in order, and lays the sum out as the weight lies."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    total = tl.zeros((BLOCK,), sums.dtype.element_ty)
    pointers = sums + index
    for _ in tl.range(0, parts):
        total += tl.load(pointers, mask=inside, other=0.0)
        pointers += size
    channel = index % CHANNELS
    q = index // CHANNELS % taps_x
    j = index // CHANNELS // taps_x % taps_y
    k = index // CHANNELS // taps_x // taps_y
    offset = k * output_k + channel * output_c + j * output_y + q * output_x
    tl.store(output + offset, total.to(output.dtype.element_ty), mask=inside)


def weight_gradient(
    dz: Tensor,
    input: Tensor,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    config: GemmConfig | None = None,
) -> None:
    """Backward-weight: sums over parts of the pixels, then their sum in order."""
    outs, channels, taps_y, taps_x = output.shape
    images, _, height, width = dz.shape
    pixels, columns, n = images * height * width, outs // groups, taps_y * taps_x * channels
    target = target_of(dz)
    precision = precision_of(dz.dtype, target)
    config = config or choose(target, dz.dtype, precision, columns, n)
    direct = narrow(groups, columns, channels)
    if direct:
        block_m, block_n = (32, 32) if target.interpreted else (64, 64)
        tiles, step = triton.cdiv(outs, block_n) * n, block_m
    else:
        block_m, block_n, step = config.block_m, config.block_n, config.block_k
        tiles = triton.cdiv(columns, block_m) * triton.cdiv(n, block_n) * groups
    # Enough parts to fill the device twice, none shorter than four steps.
    parts = min(triton.cdiv(2 * target.processors, max(tiles, 1)), 256, pixels // (4 * step))
    part = triton.cdiv(triton.cdiv(pixels, max(parts, 1)), step) * step
    parts = triton.cdiv(pixels, max(part, 1))
    sums = torch.float64 if dz.dtype == torch.float64 else torch.float32
    partial_sums = dz.new_empty((parts, outs, n), dtype=sums)
    y = forward_gather(height, input.size(2), taps_y, stride[0], padding[0], dilation[0])
    x = forward_gather(width, input.size(3), taps_x, stride[1], padding[1], dilation[1])
    arguments = (
        *(dz, input, partial_sums, pixels, part, height, width, y.source, x.source),
        *(columns, channels, taps_y, taps_x),
        *(y.scale, y.first, y.step, x.scale, x.first, x.step),
        *dz.stride(),
        *input.stride(),
        groups,
    )
    options = {"COMPUTE": compute_type(dz.dtype), "BLOCK_M": block_m, "BLOCK_N": block_n}
    if direct:
        launch(conv2d_weight_direct_kernel, tiles * parts, *arguments, num_warps=4, **options)
    else:
        launch(
            conv2d_weight_gemm_kernel,
            tiles * parts,
            *arguments,
            PRECISION=precision,
            WIDEN=target.interpreted,
            BLOCK_K=config.block_k,
            num_warps=config.warps,
            num_stages=config.stages,
            **options,
        )
    launch(
        conv2d_weight_sum_kernel,
        triton.cdiv(output.numel(), 1024),
        *(partial_sums, output, parts, output.numel(), channels, taps_y, taps_x),
        *output.stride(),
        BLOCK=1024,
        num_warps=4,
    )

"""conv2d: implicit GEMM over gathered pixels; the column matrix is never stored.

One gather serves both directions. A convolution, and each stride phase of backward-data, reads
    source[n, i * y_scale + y_first + j * y_step, l * x_scale + x_first + q * x_step, channel]
for tap (j, q) of output pixel (i, l): a phase is a convolution of stride 1 with the taps it meets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import (
    ACTIVATIONS,
    FROM_INPUT,
    MASKED,
    above,
    activate,
    compute_type,
    derivative,
    packed,
)
from .launch import Target, cannot_run_on, launch, register, target_of
from .linear import AMPERE, CDNA, HOPPER, GemmConfig, float32_precision, ordered_sum

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def finish_tile(
    z, out, bias, residual, saved, offset, p, column, k, inside, P, K, parameter,
    ACTIVATION: tl.constexpr, SAVE: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The epilogue of a tile [ROWS pixels from p, COLUMNS out-channels k, the first one column]."""
    if HAS_BIAS:
        z += tl.load(bias + k, mask=k < K, other=0.0).to(z.dtype)[None, :]
    if HAS_RESIDUAL:
        z += tl.load(residual + offset, mask=inside, other=0.0).to(z.dtype)
    if SAVE == "mask":
        keep = above(z, parameter, ACTIVATION) & inside
        if CHANNELS_LAST:
            octet = column // 8 + tl.arange(0, COLUMNS // 8)
            row = p.to(tl.int64) + tl.arange(0, ROWS)
            octets = tl.cdiv(K, 8)
            tl.store(
                saved + row[:, None] * octets + octet[None, :],
                packed(keep, ROWS, COLUMNS),
                mask=(row < P)[:, None] & (octet < octets)[None, :],
            )
        else:
            octet = p // 8 + tl.arange(0, ROWS // 8)
            octets = tl.cdiv(P, 8)
            tl.store(
                saved + k.to(tl.int64)[:, None] * octets + octet[None, :],
                packed(tl.trans(keep), COLUMNS, ROWS),
                mask=(k < K)[:, None] & (octet < octets)[None, :],
            )
    elif SAVE == "z":
        tl.store(saved + offset, z.to(saved.dtype.element_ty), mask=inside)
    y = activate(z, parameter, ACTIVATION)
    tl.store(out + offset, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def conv2d_gemm_kernel(
    out, source, weight, bias, residual, saved,
    P, HEIGHT, WIDTH, SOURCE_HEIGHT, SOURCE_WIDTH, CHANNELS, COLUMNS_, taps_y, taps_x,
    y_scale, y_first, y_step, x_scale, x_first, x_step,
    source_n, source_c, source_y, source_x, weight_group, weight_c, weight_m, weight_y, weight_x,
    out_n, out_c, out_y, out_x, groups, parameter: tl.float64,
    ACTIVATION: tl.constexpr, SAVE: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, CHANNELS_LAST: tl.constexpr, FLAT: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """[pixels, taps and channels] @ [taps and channels, columns of a group], and its epilogue."""
    tiles_m = tl.cdiv(P, BLOCK_M)
    tiles_n = tl.cdiv(COLUMNS_, BLOCK_N)
    convolution_group = tl.program_id(0) // (tiles_m * tiles_n)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    panel = GROUP_M * tiles_n
    first = tile // panel * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    row = (first + tile % panel % height) * BLOCK_M
    column = tile % panel // height * BLOCK_N

    p = row + tl.arange(0, BLOCK_M)
    n = (p // (HEIGHT * WIDTH)).to(tl.int64)
    i = p // WIDTH % HEIGHT
    l = p % WIDTH
    y = i * y_scale + y_first
    x = l * x_scale + x_first
    source += convolution_group.to(tl.int64) * CHANNELS * source_c
    weight += convolution_group.to(tl.int64) * weight_group
    pixel = n * source_n + y.to(tl.int64) * source_y + x.to(tl.int64) * source_x
    m = column + tl.arange(0, BLOCK_N)
    weight_column = m.to(tl.int64) * weight_m
    c = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    blocks = tl.cdiv(CHANNELS, BLOCK_K)
    steps = tl.cdiv(taps_y * taps_x * CHANNELS, BLOCK_K) if FLAT else taps_y * taps_x * blocks
    for step in tl.range(0, steps):
        if FLAT:
            # Few channels: a step takes several taps, each of its columns its own.
            index = step * BLOCK_K + c
            channel = index % CHANNELS
            tap = index // CHANNELS
            j = tap // taps_x
            q = tap % taps_x
            sy = y[:, None] + (j * y_step)[None, :]
            sx = x[:, None] + (q * x_step)[None, :]
            there = (tap < taps_y * taps_x)[None, :]
            below = tap < taps_y * taps_x
            inside = (sy >= 0) & (sy < SOURCE_HEIGHT) & (sx >= 0) & (sx < SOURCE_WIDTH) & there
            shift = (j * y_step) * source_y + (q * x_step) * source_x + channel * source_c
            weight_row = j * weight_y + q * weight_x + channel * weight_c
        else:
            tap = step // blocks
            channel = step % blocks * BLOCK_K + c
            j = tap // taps_x
            q = tap % taps_x
            sy = y + j * y_step
            sx = x + q * x_step
            below = channel < CHANNELS
            seen = (sy >= 0) & (sy < SOURCE_HEIGHT) & (sx >= 0) & (sx < SOURCE_WIDTH)
            inside = seen[:, None] & below[None, :]
            shift = (j * y_step) * source_y + (q * x_step) * source_x + channel * source_c
            weight_row = j * weight_y + q * weight_x + channel * weight_c
        a = tl.load(
            source + pixel[:, None] + shift[None, :], mask=inside & (p < P)[:, None], other=0.0
        )
        b = tl.load(
            weight + weight_row[:, None] + weight_column[None, :],
            mask=below[:, None] & (m < COLUMNS_)[None, :],
            other=0.0,
        )
        if WIDEN:
            a = a.to(COMPUTE)
            b = b.to(COMPUTE)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=COMPUTE)

    start = convolution_group * COLUMNS_
    k = start + m
    offset = n * out_n + i.to(tl.int64) * out_y + l.to(tl.int64) * out_x
    offset = offset[:, None] + k.to(tl.int64)[None, :] * out_c
    inside_out = (p < P)[:, None] & (m < COLUMNS_)[None, :]
    finish_tile(
        total, out, bias, residual, saved, offset, row, start + column, k, inside_out,
        P, groups * COLUMNS_, parameter,
        ACTIVATION, SAVE, HAS_BIAS, HAS_RESIDUAL, CHANNELS_LAST, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def conv2d_direct_kernel(
    out, source, weight, bias, residual, saved,
    P, HEIGHT, WIDTH, SOURCE_HEIGHT, SOURCE_WIDTH, CHANNELS, COLUMNS_, taps_y, taps_x,
    y_scale, y_first, y_step, x_scale, x_first, x_step,
    source_n, source_c, source_y, source_x, weight_group, weight_c, weight_m, weight_y, weight_x,
    out_n, out_c, out_y, out_x, groups, parameter: tl.float64,
    ACTIVATION: tl.constexpr, SAVE: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, CHANNELS_LAST: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Groups too narrow for a matrix product, depthwise above all: multiply and add elementwise."""
    K = groups * COLUMNS_
    tiles_n = tl.cdiv(K, BLOCK_N)
    row = tl.program_id(0) // tiles_n * BLOCK_M
    column = tl.program_id(0) % tiles_n * BLOCK_N
    p = row + tl.arange(0, BLOCK_M)
    n = (p // (HEIGHT * WIDTH)).to(tl.int64)
    i = p // WIDTH % HEIGHT
    l = p % WIDTH
    y = i * y_scale + y_first
    x = l * x_scale + x_first
    k = column + tl.arange(0, BLOCK_N)
    group = (k // COLUMNS_).to(tl.int64)
    pixel = n * source_n + y.to(tl.int64) * source_y + x.to(tl.int64) * source_x
    pointers = source + pixel[:, None] + (group * CHANNELS * source_c)[None, :]
    weights = weight + group * weight_group + (k % COLUMNS_).to(tl.int64) * weight_m
    total = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    for step in tl.range(0, taps_y * taps_x * CHANNELS):
        tap = step // CHANNELS
        channel = step % CHANNELS
        j = tap // taps_x
        q = tap % taps_x
        sy = y + j * y_step
        sx = x + q * x_step
        seen = (sy >= 0) & (sy < SOURCE_HEIGHT) & (sx >= 0) & (sx < SOURCE_WIDTH) & (p < P)
        shift = (j * y_step) * source_y + (q * x_step) * source_x + channel * source_c
        a = tl.load(pointers + shift, mask=seen[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(
            weights + (j * weight_y + q * weight_x + channel * weight_c), mask=k < K, other=0.0
        )
        total += a.to(COMPUTE) * b.to(COMPUTE)[None, :]
    offset = n * out_n + i.to(tl.int64) * out_y + l.to(tl.int64) * out_x
    offset = offset[:, None] + k.to(tl.int64)[None, :] * out_c
    inside_out = (p < P)[:, None] & (k < K)[None, :]
    finish_tile(
        total, out, bias, residual, saved, offset, row, column, k, inside_out, P, K, parameter,
        ACTIVATION, SAVE, HAS_BIAS, HAS_RESIDUAL, CHANNELS_LAST, BLOCK_M, BLOCK_N,
    )  # fmt: skip


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


@dataclass(frozen=True)
class Gather:
    """One direction of the gather: source = pixel * scale + first + tap * step."""

    size: int
    source: int
    taps: int
    scale: int
    first: int
    step: int


def forward_gather(
    output: int, source: int, taps: int, stride: int, padding: int, dilation: int
) -> Gather:
    return Gather(output, source, taps, stride, -padding, dilation)


def phase_gather(
    phase: int, input: int, output: int, taps: int, stride: int, padding: int, dilation: int
) -> tuple[Gather, int, int]:
    """Backward-data of the input pixels phase, phase + stride, ...: the gather, which of the taps
    is the first that meets them, and the distance between such taps."""
    size = len(range(phase, input, stride))
    distance = stride // gcd(stride, dilation)
    meeting = [
        r for r in range(min(distance, taps)) if (phase + padding - r * dilation) % stride == 0
    ]
    if not meeting:
        return Gather(size, output, 0, 1, 0, 0), 0, 1
    first = meeting[0]
    gather = Gather(
        size,
        output,
        len(range(first, taps, distance)),
        1,
        (phase + padding - first * dilation) // stride,
        -(distance * dilation) // stride,
    )
    return gather, first, distance


# Gathered pointers take registers that large tiles of sums would need.
LARGEST_TILE = 128 * 128
INTERPRETED = (GemmConfig(64, 32, 32, 1, 1, group_m=2),)


def candidates(target: Target, dtype: torch.dtype, precision: str) -> tuple[GemmConfig, ...]:
    """The configurations worth trying on `target`, best guess for large products first."""
    if target.interpreted:
        return INTERPRETED
    width = 8 * dtype.itemsize
    if target.backend == "hip":
        table = CDNA
    elif width == 16 and target.capability >= 90:
        return (
            GemmConfig(128, 128, 64, 8, 3),
            GemmConfig(128, 128, 32, 8, 4),
            GemmConfig(128, 64, 64, 4, 4),
            GemmConfig(64, 128, 64, 4, 3),
            GemmConfig(64, 64, 64, 4, 4),
        )
    else:
        table = HOPPER if target.capability >= 90 else AMPERE
    options = table["tf32" if width == 32 and precision == "tf32" else width]
    return tuple(o for o in options if o.block_m * o.block_n <= LARGEST_TILE)


def choose(target: Target, dtype: torch.dtype, precision: str, m: int, n: int) -> GemmConfig:
    """The first configuration that fits the product and fills the device, else the last."""
    options = candidates(target, dtype, precision)
    fitting = [o for o in options if o.block_m <= max(64, m) and o.block_n <= max(64, n)]
    for option in fitting:
        if triton.cdiv(m, option.block_m) * triton.cdiv(n, option.block_n) >= target.processors:
            return option
    return (fitting or options)[-1]


def narrow(groups: int, columns: int, channels: int) -> bool:
    """Whether groups are computed elementwise; their masks must begin with a byte otherwise."""
    return groups > 1 and (min(columns, channels) < 16 or columns % 8 != 0)


def precision_of(tensor: Tensor) -> str:
    return float32_precision() if tensor.dtype == torch.float32 else "ieee"


def convolve(
    out: Tensor,
    source: Tensor,
    weight: Tensor,
    weight_strides: tuple[int, int, int, int, int],
    channels: int,
    columns: int,
    groups: int,
    y: Gather,
    x: Gather,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    saved: Tensor | None = None,
    activation: str = "none",
    parameter: float = 0.0,
    channels_last: bool = True,
    config: GemmConfig | None = None,
) -> None:
    """Writes one gather product into `out`, a view [N, groups * columns, y.size, x.size].

    `weight` begins at its first tap; its strides are those of a group, of a channel that is summed
    over, of a column, and of the taps in y and x.
    """
    pixels = out.size(0) * y.size * x.size
    target = target_of(source)
    arguments = (
        *(out, source, weight),
        *(out if extra is None else extra for extra in (bias, residual, saved)),
        *(pixels, y.size, x.size, y.source, x.source, channels, columns, y.taps, x.taps),
        *(y.scale, y.first, y.step, x.scale, x.first, x.step),
        *source.stride(),
        *weight_strides,
        *out.stride(),
        groups,
        parameter,
    )
    options = {
        "ACTIVATION": activation,
        "SAVE": "" if saved is None else "mask" if activation in MASKED else "z",
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "CHANNELS_LAST": channels_last,
        "COMPUTE": compute_type(source.dtype),
    }
    if narrow(groups, columns, channels):
        block_m, block_n = (32, 32) if target.interpreted else (32, 64)
        launch(
            conv2d_direct_kernel,
            triton.cdiv(pixels, block_m) * triton.cdiv(groups * columns, block_n),
            *arguments,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=4,
            **options,
        )
        return
    precision = precision_of(source)
    config = config or choose(target, source.dtype, precision, pixels, columns)
    flat = channels < config.block_k
    # A step over several taps gathers each column from elsewhere: fewer columns, fewer registers.
    block_k = min(config.block_k, 32) if flat else config.block_k
    launch(
        conv2d_gemm_kernel,
        triton.cdiv(pixels, config.block_m) * triton.cdiv(columns, config.block_n) * groups,
        *arguments,
        FLAT=flat,
        PRECISION=precision,
        # The interpreter multiplies the bit patterns of bfloat16.
        WIDEN=target.interpreted,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=block_k,
        GROUP_M=config.group_m,
        num_warps=config.warps,
        num_stages=config.stages,
        **options,
    )


def input_gradient(
    dz: Tensor,
    weight: Tensor,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Backward-data, one dense product for each stride phase."""
    outs, channels, taps_y, taps_x = weight.shape
    k, c, r, s = weight.stride()
    for phase_y in range(min(stride[0], output.size(2))):
        y, first_y, distance_y = phase_gather(
            phase_y, output.size(2), dz.size(2), taps_y, stride[0], padding[0], dilation[0]
        )
        for phase_x in range(min(stride[1], output.size(3))):
            x, first_x, distance_x = phase_gather(
                phase_x, output.size(3), dz.size(3), taps_x, stride[1], padding[1], dilation[1]
            )
            convolve(
                output[:, :, phase_y :: stride[0], phase_x :: stride[1]],
                dz,
                weight[:, :, first_y:, first_x:],
                (outs // groups * k, k, c, distance_y * r, distance_x * s),
                outs // groups,
                channels,
                groups,
                y,
                x,
            )


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
    precision = precision_of(dz)
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


def unsupported(input: Tensor, *_: object) -> list[str]:
    """Reasons why these kernels cannot take `input`; empty where they can."""
    reasons = cannot_run_on(input)
    if input.dtype not in DTYPES:
        reasons.append(f"dtype {input.dtype} is not one of {', '.join(map(str, DTYPES))}")
    return reasons


def strides_as(tensor: Tensor, channels_last: bool) -> Tensor:
    """`tensor` with the strides of its layout, which torch leaves open for sizes of 1."""
    _, channels, height, width = tensor.shape
    if channels_last:
        strides = height * width * channels, 1, width * channels, channels
    else:
        strides = channels * height * width, height * width, width, 1
    return tensor.as_strided(tensor.shape, strides)


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
    output, saved = conv2d_forward_fake(
        input, weight, bias, residual, stride, padding, dilation, groups, activation, parameter,
        algorithm, channels_last, save,
    )  # fmt: skip
    columns, channels = weight.size(0) // groups, weight.size(1)
    k, c, r, s = weight.stride()
    sizes = zip(output.shape[2:], input.shape[2:], weight.shape[2:], strict=True)
    y, x = (
        forward_gather(*size, *step)
        for size, step in zip(sizes, zip(stride, padding, dilation, strict=True), strict=True)
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
        saved=saved if save and activation in MASKED + FROM_INPUT else None,
        activation=activation,
        parameter=parameter,
        channels_last=channels_last,
    )
    return output, saved


def conv2d_forward_fake(
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
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    height, width = (
        (input.size(d + 2) + 2 * padding[d] - dilation[d] * (weight.size(d + 2) - 1) - 1)
        // stride[d]
        + 1
        for d in (0, 1)
    )
    images, outs = input.size(0), weight.size(0)
    output = torch.empty(
        (images, outs, height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if save and activation in MASKED:
        rows, bits = images * height * width, outs
        rows, bits = (rows, bits) if channels_last else (bits, rows)
        return output, input.new_empty((rows, (bits + 7) // 8), dtype=torch.uint8)
    if save and activation in FROM_INPUT:
        return output, torch.empty_like(output)
    return output, input.new_empty(0, dtype=torch.uint8)


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
    needs_input, needs_weight, needs_bias, needs_residual = needs
    grad = strides_as(grad, channels_last)
    # The gradient of a residual is dz itself, which must not be the incoming gradient.
    has_dz = needs_residual or (activation != "none" and (needs_input or needs_weight))
    dz, bias_grad = activation_backward(
        grad, saved, activation, parameter, channels_last, has_dz, needs_bias
    )
    input_grad, weight_grad = None, None
    geometry = (stride, padding, dilation, groups)
    if needs_input:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        input_grad = torch.empty_like(input, memory_format=memory_format)
        input_gradient(dz, weight, input_grad, *geometry)
    if needs_weight:
        weight_grad = torch.empty_like(weight)
        weight_gradient(dz, input, weight_grad, *geometry)
    return input_grad, weight_grad, bias_grad, dz if needs_residual else None


def conv2d_backward_fake(
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
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return (
        torch.empty_like(input, memory_format=memory_format) if needs[0] else None,
        torch.empty_like(weight) if needs[1] else None,
        weight.new_empty(weight.size(0)) if needs[2] else None,
        torch.empty_like(grad, memory_format=memory_format) if needs[3] else None,
    )


register(
    "conv2d_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, "
    "int[] padding, int[] dilation, int groups, str activation, float parameter, str algorithm, "
    "bool channels_last, bool save) -> (Tensor, Tensor)",
    conv2d_forward,
    conv2d_forward_fake,
)
register(
    "conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor saved, int[] stride, "
    "int[] padding, int[] dilation, int groups, str activation, float parameter, str algorithm, "
    "bool channels_last, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    conv2d_backward,
    conv2d_backward_fake,
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
        y, saved = conv2d_forward_fake(x, weight, bias, None, *options, True)
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

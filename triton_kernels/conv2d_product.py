"""The gathered product: forward, and backward-data of each stride phase, with the epilogue."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .conv2d_config import choose
from .conv2d_gather import Gather, narrow, phase_gather
from .epilogue import MASKED, above, activate, compute_type, packed
from .gemm_config import GemmConfig, precision_of
from .launch import launch, target_of


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
    precision = precision_of(source.dtype, target)
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

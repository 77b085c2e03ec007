"""Linear: output = act(input @ weight.T + bias), and its gradients, through one GEMM kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

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

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def tile_of(
    a, row, column, rows, columns, row_stride, column_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTOR: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """The [ROWS, COLUMNS] tile at (row, column) of an operand; 0 outside of it."""
    if DESCRIPTOR:
        tile = a.load([column, row]).T if TRANSPOSED else a.load([row, column])
    else:
        r = row + tl.arange(0, ROWS).to(tl.int64)
        c = column + tl.arange(0, COLUMNS).to(tl.int64)
        pointers = a + r[:, None] * row_stride + c[None, :] * column_stride
        tile = tl.load(pointers, mask=(r < rows)[:, None] & (c < columns)[None, :], other=0.0)
    return tile


@triton.jit
def store_tile(
    z, c, bias, saved, batch, row, column, M, N, parameter,
    ACTIVATION: tl.constexpr, SAVE: tl.constexpr, HAS_BIAS: tl.constexpr, DESCRIPTOR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The epilogue of one tile: bias, activation, what the backward needs, and the store."""
    m = row + tl.arange(0, ROWS).to(tl.int64)
    n = column + tl.arange(0, COLUMNS)
    inside = (m < M)[:, None] & (n < N)[None, :]
    if HAS_BIAS:
        z += tl.load(bias + n, mask=n < N, other=0.0).to(z.dtype)[None, :]
    if SAVE == "mask":
        keep = above(z, parameter, ACTIVATION) & (n < N)[None, :]
        octet = column // 8 + tl.arange(0, COLUMNS // 8)
        octets = tl.cdiv(N, 8)
        tl.store(
            saved + m[:, None] * octets + octet[None, :],
            packed(keep, ROWS, COLUMNS),
            mask=(m < M)[:, None] & (octet < octets)[None, :],
        )
    elif SAVE == "z":
        tl.store(saved + m[:, None] * N + n[None, :], z.to(saved.dtype.element_ty), mask=inside)
    y = activate(z, parameter, ACTIVATION)
    if DESCRIPTOR:
        c.store([row, column], y.to(c.dtype))
    else:
        offset = (batch.to(tl.int64) * M + m[:, None]) * N + n[None, :]
        tl.store(c + offset, y.to(c.dtype.element_ty), mask=inside)


@triton.jit
def gemm_kernel(
    c, a, b, bias, saved, M, N, K, K_SPLIT,
    a_row, a_column, b_row, b_column, parameter: tl.float64,
    ACTIVATION: tl.constexpr, SAVE: tl.constexpr, HAS_BIAS: tl.constexpr, SPLITS: tl.constexpr,
    A_DESCRIPTOR: tl.constexpr, A_TRANSPOSED: tl.constexpr,
    B_DESCRIPTOR: tl.constexpr, B_TRANSPOSED: tl.constexpr, C_DESCRIPTOR: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, SUBTILES: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """c = act(a @ b + bias), a [M, K], b [K, N]; or c[s] = the sum over the s-th part of K."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tiles_m * tiles_n
    group = GROUP_M * tiles_n
    for work in tl.range(tl.program_id(0), tiles * SPLITS, tl.num_programs(0), flatten=FLATTEN):
        batch = work // tiles
        tile = work % tiles
        # GROUP_M rows of tiles go down the columns together, and share b's tiles in the L2.
        first = tile // group * GROUP_M
        height = tl.minimum(tiles_m - first, GROUP_M)
        row = (first + tile % group % height) * BLOCK_M
        column = tile % group // height * BLOCK_N

        total = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
        if SPLITS == 1:
            start = 0
            steps = tl.cdiv(K, BLOCK_K)
        else:
            start = batch * K_SPLIT
            steps = tl.cdiv(tl.minimum(K - start, K_SPLIT), BLOCK_K)
        for step in tl.range(0, steps):
            k = start + step * BLOCK_K
            a_tile = tile_of(
                a, row, k, M, K, a_row, a_column, BLOCK_M, BLOCK_K, A_DESCRIPTOR, A_TRANSPOSED
            )
            b_tile = tile_of(
                b, k, column, K, N, b_row, b_column, BLOCK_K, BLOCK_N, B_DESCRIPTOR, B_TRANSPOSED
            )
            if WIDEN:
                a_tile = a_tile.to(COMPUTE)
                b_tile = b_tile.to(COMPUTE)
            total = tl.dot(a_tile, b_tile, total, input_precision=PRECISION, out_dtype=COMPUTE)

        if SUBTILES == 2:
            # Half of the tile at a time needs half of the shared memory on its way out.
            halves = tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(halves)
            store_tile(
                left, c, bias, saved, batch, row, column, M, N, parameter,
                ACTIVATION, SAVE, HAS_BIAS, C_DESCRIPTOR, BLOCK_M, BLOCK_N // 2,
            )  # fmt: skip
            store_tile(
                right, c, bias, saved, batch, row, column + BLOCK_N // 2, M, N, parameter,
                ACTIVATION, SAVE, HAS_BIAS, C_DESCRIPTOR, BLOCK_M, BLOCK_N // 2,
            )  # fmt: skip
        else:
            store_tile(
                total, c, bias, saved, batch, row, column, M, N, parameter,
                ACTIVATION, SAVE, HAS_BIAS, C_DESCRIPTOR, BLOCK_M, BLOCK_N,
            )  # fmt: skip


@triton.jit
def ordered_sum_kernel(partial, output, parts, size, scale: tl.float64, BLOCK: tl.constexpr):
    """output[i] = scale * the sum over p of partial[p, i], p in order: every sum's second stage."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    total = tl.zeros((BLOCK,), partial.dtype.element_ty)
    pointers = partial + index
    for _ in tl.range(0, parts):
        total += tl.load(pointers, mask=inside, other=0.0)
        pointers += size
    total *= tl.full([1], scale, total.dtype)
    tl.store(output + index, total.to(output.dtype.element_ty), mask=inside)


@triton.jit
def activation_backward_kernel(
    grad, saved, dz, partial, M, N, ROWS_PER_PROGRAM, grad_row, grad_column, parameter: tl.float64,
    ACTIVATION: tl.constexpr, HAS_DZ: tl.constexpr, HAS_SUM: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dz = grad * act'(saved), and sums of its columns over ROWS_PER_PROGRAM rows, in one pass."""
    octets = tl.cdiv(N, 8)
    tiles_n = tl.cdiv(N, BLOCK_N)
    part = tl.program_id(0) // tiles_n
    octet = tl.program_id(0) % tiles_n * (BLOCK_N // 8) + tl.arange(0, BLOCK_N // 8)
    # Columns are counted as (octet, bit), the way in which masks are stored.
    bit = tl.arange(0, 8)[None, None, :]
    n = octet.to(tl.int64)[None, :, None] * 8 + bit
    total = tl.zeros((BLOCK_M, BLOCK_N // 8, 8), COMPUTE)
    start = part.to(tl.int64) * ROWS_PER_PROGRAM
    for step in tl.range(0, ROWS_PER_PROGRAM, BLOCK_M):
        row = start + step + tl.arange(0, BLOCK_M)
        m = row[:, None, None]
        inside = (m < M) & (n < N)
        g = tl.load(grad + m * grad_row + n * grad_column, mask=inside, other=0.0).to(COMPUTE)
        if ACTIVATION == "relu" or ACTIVATION == "threshold" or ACTIVATION == "leaky_relu":
            mask = tl.load(
                saved + row[:, None] * octets + octet[None, :],
                mask=(row < M)[:, None] & (octet < octets)[None, :],
                other=0,
            ).to(tl.int32)
            keep = ((mask[:, :, None] >> bit) & 1) != 0
            if ACTIVATION == "leaky_relu":
                g = tl.where(keep, g, g * tl.full([1, 1, 1], parameter, COMPUTE))
            else:
                g = tl.where(keep, g, 0.0)
        elif ACTIVATION != "none":
            z = tl.load(saved + m * N + n, mask=inside, other=0.0).to(COMPUTE)
            g *= derivative(z, ACTIVATION)
        if HAS_DZ:
            tl.store(dz + m * N + n, g.to(dz.dtype.element_ty), mask=inside)
        if HAS_SUM:
            total += g
    if HAS_SUM:
        column = octet[:, None] * 8 + tl.arange(0, 8)[None, :]
        tl.store(partial + part.to(tl.int64) * N + column, tl.sum(total, axis=0), mask=column < N)


@dataclass(frozen=True)
class GemmConfig:
    """How one GEMM is tiled; `resident` programs share a processor."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    resident: int = 1
    group_m: int = 8
    subtiles: int = 1
    flatten: bool = False

    def __str__(self) -> str:
        sizes = f"{self.block_m}x{self.block_n}x{self.block_k}"
        return f"{sizes} w{self.warps} s{self.stages}" + ("/2" if self.subtiles == 2 else "")


# The configurations worth timing on a GPU, best guess first and smaller tiles last. They come from
# published Hopper and Ampere tilings and from what compiles without spills, not from measurements.
HOPPER = {
    16: (
        GemmConfig(128, 256, 64, 8, 3, subtiles=2, flatten=True),
        GemmConfig(128, 256, 64, 8, 3, subtiles=2),
        GemmConfig(256, 128, 64, 8, 3, subtiles=2, flatten=True),
        GemmConfig(128, 128, 64, 4, 3, resident=2),
        GemmConfig(128, 128, 128, 8, 3, subtiles=2),
        GemmConfig(64, 256, 64, 4, 4),
        GemmConfig(64, 128, 64, 4, 4, resident=2),
        GemmConfig(64, 64, 128, 4, 4, resident=2),
    ),
    "tf32": (
        GemmConfig(128, 128, 32, 8, 4),
        GemmConfig(128, 256, 32, 8, 3, subtiles=2),
        GemmConfig(64, 128, 32, 4, 4, resident=2),
        GemmConfig(64, 64, 32, 4, 4, resident=2),
    ),
    32: (
        GemmConfig(128, 128, 16, 8, 3),
        GemmConfig(128, 64, 16, 8, 3, resident=2),
        GemmConfig(64, 64, 16, 4, 3, resident=4),
    ),
    64: (
        GemmConfig(64, 64, 16, 4, 3, resident=2),
        GemmConfig(64, 64, 16, 8, 2, resident=2),
        GemmConfig(32, 32, 16, 4, 3, resident=4),
    ),
}
AMPERE = {
    16: (
        GemmConfig(128, 128, 32, 8, 4),
        GemmConfig(128, 128, 64, 8, 3),
        GemmConfig(64, 128, 32, 4, 4, resident=2),
        GemmConfig(64, 64, 32, 4, 4, resident=3),
    ),
    "tf32": (
        GemmConfig(128, 128, 32, 8, 3),
        GemmConfig(64, 64, 32, 4, 3, resident=3),
    ),
    32: HOPPER[32],
    64: HOPPER[64],
}
CDNA = {
    16: (GemmConfig(128, 128, 64, 8, 2), GemmConfig(64, 64, 64, 4, 2, resident=2)),
    "tf32": (GemmConfig(128, 128, 32, 8, 2), GemmConfig(64, 64, 32, 4, 2, resident=2)),
    32: (GemmConfig(128, 128, 32, 8, 2), GemmConfig(64, 64, 32, 4, 2, resident=2)),
    64: (GemmConfig(64, 64, 16, 4, 2, resident=2), GemmConfig(32, 32, 16, 4, 2, resident=4)),
}
# Tiles this small meet every edge on the shapes of tests.
INTERPRETED = (GemmConfig(16, 32, 16, 1, 1, group_m=2, subtiles=2),)


def candidates(target: Target, dtype: torch.dtype, precision: str) -> tuple[GemmConfig, ...]:
    """The configurations worth trying on `target`, best guess for large products first."""
    if target.interpreted:
        return INTERPRETED
    table = CDNA if target.backend == "hip" else HOPPER if target.capability >= 90 else AMPERE
    width = 8 * dtype.itemsize
    return table["tf32" if width == 32 and precision == "tf32" else width]


def choose(
    target: Target, dtype: torch.dtype, precision: str, m: int, n: int, *, described: bool
) -> GemmConfig:
    """The configuration for one product: the first whose tiles fill the device, else the last."""
    options = candidates(target, dtype, precision)
    if not described:
        # Pointers to large tiles take the registers that their sums need.
        options = tuple(o for o in options if o.block_m * o.block_n <= 128 * 128)
    fitting = [o for o in options if o.block_m <= max(64, m) and o.block_n <= max(64, n)]
    for option in fitting:
        if triton.cdiv(m, option.block_m) * triton.cdiv(n, option.block_n) >= target.processors:
            return option
    return (fitting or options)[-1]


def splits_of(target: Target, config: GemmConfig, m: int, n: int, k: int) -> int:
    """How many parts K is cut into, so that few tiles still fill the device."""
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    room = target.processors * config.resident // max(tiles, 1)
    # A part shorter than 4 steps costs more in partial sums than it gains.
    return max(1, min(room, k // (4 * config.block_k), 32))


def float32_precision() -> str:
    """What torch allows for products of float32 matrices."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def describable(matrix: Tensor) -> bool:
    """Whether a tensor descriptor can stand for `matrix`: rows contiguous and aligned."""
    return (
        matrix.stride(1) == 1
        and matrix.stride(0) * matrix.itemsize % 16 == 0
        and matrix.stride(0) >= matrix.size(1)
        and matrix.data_ptr() % 16 == 0
        and min(matrix.shape) > 0
        and max(matrix.shape) < 2**31 - 1024
    )


def operand(matrix: Tensor, block: tuple[int, int], descriptors: bool) -> tuple[object, bool, bool]:
    """`matrix` as gemm_kernel takes it: the argument, if it is a descriptor, if transposed."""
    if descriptors and describable(matrix):
        return TensorDescriptor.from_tensor(matrix, list(block)), True, False
    if descriptors and describable(matrix.t()):
        return TensorDescriptor.from_tensor(matrix.t(), list(block[::-1])), True, True
    return matrix, False, False


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    bias: Tensor | None = None,
    saved: Tensor | None = None,
    activation: str = "none",
    parameter: float = 0.0,
    split: bool = False,
    config: GemmConfig | None = None,
) -> None:
    """Writes act(a @ b + bias) into the contiguous c; `split` cuts K where tiles are few."""
    (m, k), n = a.shape, b.size(1)
    target = target_of(a)
    precision = float32_precision() if a.dtype == torch.float32 else "ieee"
    # float32 products on the ordinary cores keep fewer registers with pointers: descriptors spill.
    on_cores = a.dtype == torch.float32 and precision == "ieee" and not target.interpreted
    descriptors = (target.descriptors or target.interpreted) and k > 0 and not on_cores
    described = all(describable(x) or describable(x.t()) for x in (a, b))
    config = config or choose(target, a.dtype, precision, m, n, described=described)
    a_argument, a_descriptor, a_transposed = operand(
        a, (config.block_m, config.block_k), descriptors
    )
    b_argument, b_descriptor, b_transposed = operand(
        b, (config.block_k, config.block_n), descriptors
    )
    splits = splits_of(target, config, m, n, k) if split else 1
    c_argument, c_descriptor = c, False
    if splits > 1:
        part = triton.cdiv(triton.cdiv(k, splits), config.block_k) * config.block_k
        splits = triton.cdiv(k, part)
        sums = torch.float64 if a.dtype == torch.float64 else torch.float32
        c_argument = c.new_empty((splits, m, n), dtype=sums)
    else:
        part = k
        block = [config.block_m, config.block_n // config.subtiles]
        if descriptors and describable(c):
            c_argument, c_descriptor = TensorDescriptor.from_tensor(c, block), True
    save = "" if saved is None else "mask" if activation in MASKED else "z"
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n) * splits
    launch(
        gemm_kernel,
        min(tiles, target.processors * config.resident),
        c_argument,
        a_argument,
        b_argument,
        c if bias is None else bias,
        c if saved is None else saved,
        *(m, n, k, part),
        *a.stride(),
        *b.stride(),
        parameter,
        ACTIVATION=activation,
        SAVE=save,
        HAS_BIAS=bias is not None,
        SPLITS=splits,
        A_DESCRIPTOR=a_descriptor,
        A_TRANSPOSED=a_transposed,
        B_DESCRIPTOR=b_descriptor,
        B_TRANSPOSED=b_transposed,
        C_DESCRIPTOR=c_descriptor,
        COMPUTE=compute_type(a.dtype),
        PRECISION=precision,
        # The interpreter multiplies the bit patterns of bfloat16.
        WIDEN=target.interpreted,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=config.group_m,
        SUBTILES=config.subtiles,
        # Nested loops can be flattened only if the inner one always runs.
        FLATTEN=config.flatten and k > 0,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if splits > 1:
        ordered_sum(c_argument, c)


def ordered_sum(partial: Tensor, output: Tensor, scale: float = 1.0) -> Tensor:
    """output = scale * partial.sum(0), in order, for contiguous tensors; returns output."""
    size, block = output.numel(), 1024
    launch(
        ordered_sum_kernel,
        triton.cdiv(size, block),
        *(partial, output, partial.size(0), size, scale),
        BLOCK=block,
        num_warps=4,
    )
    return output


def activation_backward(
    grad: Tensor,
    saved: Tensor,
    activation: str,
    parameter: float,
    needs_dz: bool,
    needs_sum: bool,
) -> tuple[Tensor, Tensor | None]:
    """dz = grad * act'(saved), which is `grad` itself without an activation, and dz.sum(0)."""
    m, n = grad.shape
    has_dz = needs_dz and activation != "none"
    dz = grad.new_empty((m, n)) if has_dz else grad
    bias = grad.new_empty(n) if needs_sum else None
    if not (has_dz or needs_sum):
        return dz, bias
    interpreted = target_of(grad).interpreted
    block_m, block_n = (4, 16) if interpreted else (16, 128)
    # Rows a program: a function of the shape alone, so that the sums are the same on every device.
    rows = block_m * max(1, min(32, m * triton.cdiv(n, block_n) // (block_m * 512)))
    parts = triton.cdiv(m, rows)
    sums = torch.float64 if grad.dtype == torch.float64 else torch.float32
    partial = grad.new_empty((parts, n), dtype=sums) if needs_sum else grad
    launch(
        activation_backward_kernel,
        parts * triton.cdiv(n, block_n),
        *(grad, saved, dz, partial),
        *(m, n, rows),
        *grad.stride(),
        parameter,
        ACTIVATION=activation,
        HAS_DZ=has_dz,
        HAS_SUM=needs_sum,
        COMPUTE=compute_type(grad.dtype),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
    )
    if bias is not None:
        ordered_sum(partial, bias)
    return dz, bias


def unsupported(input: Tensor, *_: object) -> list[str]:
    """Reasons why these kernels cannot take `input`; empty where they can."""
    reasons = cannot_run_on(input)
    if input.dtype not in DTYPES:
        reasons.append(f"dtype {input.dtype} is not one of {', '.join(map(str, DTYPES))}")
    return reasons


def as_matrix(tensor: Tensor) -> Tensor:
    """[..., K] -> [M, K], as a view wherever strides allow."""
    return tensor.reshape(prod(tensor.shape[:-1]), tensor.size(-1))


def linear_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    parameter: float,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Returns act(input @ weight.T + bias) and what the backward needs of it."""
    output, saved = linear_forward_fake(input, weight, bias, activation, parameter, save)
    gemm(
        as_matrix(input),
        weight.t(),
        as_matrix(output),
        bias=bias if bias is None else bias.contiguous(),
        saved=saved if save and activation in MASKED + FROM_INPUT else None,
        activation=activation,
        parameter=parameter,
    )
    return output, saved


def linear_forward_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    parameter: float,
    save: bool,
) -> tuple[Tensor, Tensor]:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    n = weight.size(0)
    output = input.new_empty((*input.shape[:-1], n))
    if save and activation in MASKED:
        rows = prod(input.shape[:-1])
        return output, input.new_empty((rows, (n + 7) // 8), dtype=torch.uint8)
    if save and activation in FROM_INPUT:
        return output, torch.empty_like(output)
    return output, input.new_empty(0, dtype=torch.uint8)


def linear_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor,
    activation: str,
    parameter: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias; None for what is not needed."""
    grad_input, grad_weight, _ = linear_backward_fake(
        grad, input, weight, saved, activation, parameter, (needs[0], needs[1], False)
    )
    dz, grad_bias = activation_backward(
        as_matrix(grad), saved, activation, parameter, needs[0] or needs[1], needs[2]
    )
    if grad_input is not None:
        gemm(dz, weight, as_matrix(grad_input))
    if grad_weight is not None:
        x = as_matrix(input)
        if grad_weight.is_contiguous():
            gemm(dz.t(), x, grad_weight, split=True)
        else:
            gemm(x.t(), dz, grad_weight.t(), split=True)
    return grad_input, grad_weight, grad_bias


def linear_backward_fake(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor,
    activation: str,
    parameter: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        input.new_empty(input.shape) if needs[0] else None,
        torch.empty_like(weight) if needs[1] else None,
        grad.new_empty(weight.size(0)) if needs[2] else None,
    )


register(
    "linear_forward(Tensor input, Tensor weight, Tensor? bias, str activation, float parameter, "
    "bool save) -> (Tensor output, Tensor saved)",
    linear_forward,
    linear_forward_fake,
)
register(
    "linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor saved, str activation, "
    "float parameter, bool[3] needs) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    linear_backward,
    linear_backward_fake,
)


def offline_calls(target: Target, every: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Named calls whose launches the offline compilation builds."""
    m, n, k = 8192, 4096, 1024
    for dtype in DTYPES if every else (torch.float64, torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        new = partial(torch.empty, dtype=dtype, device="meta")
        x, weight, grad = new(m, k), new(n, k), new(m, n)
        mask = torch.empty(m, n // 8, dtype=torch.uint8, device="meta")
        configs = candidates(target, dtype, "ieee")
        for config in configs if every else configs[:1]:
            fused = {"bias": new(n), "saved": mask, "activation": "relu", "config": config}
            yield f"{name} relu {config}", partial(gemm, x, weight.t(), grad, **fused)
        yield f"{name} relu", partial(activation_backward, grad, mask, "relu", 0.0, True, True)
        if every or dtype == torch.bfloat16:
            yield f"{name} dX", partial(gemm, grad, weight, x)
            yield f"{name} dW", partial(gemm, grad.t(), x, weight, split=True)
    x, weight, z = x.bfloat16(), weight.bfloat16(), grad.bfloat16()
    for act in ("gelu", "gelu_tanh", "silu", "tanh", "sigmoid") if every else ("gelu_tanh",):
        yield f"bfloat16 {act}", partial(linear_forward, x, weight, None, act, 0.0, True)
        yield f"bfloat16 {act}", partial(activation_backward, z, z, act, 0.0, True, True)
    yield "bfloat16 strided", partial(gemm, x[:, ::2], weight[:, ::2].t(), z)

"""One persistent GEMM with an epilogue; operands are read through descriptors or pointers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .epilogue import MASKED, above, activate, compute_type, packed
from .gemm_config import GemmConfig, choose, precision_of, splits_of
from .launch import launch, target_of
from .sums import ordered_sum


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
    precision = precision_of(a.dtype, target)
    # float32 products on the ordinary cores keep fewer registers with pointers: descriptors spill.
    on_cores = a.dtype == torch.float32 and precision == "ieee" and not target.interpreted
    descriptors = (target.descriptors or target.interpreted) and k > 0 and not on_cores
    described = all(describable(x) or describable(x.t()) for x in (a, b))
    config = config or choose(
        target, a.dtype, precision, m, n, described=described, split_depth=k if split else 0
    )
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

#pragma once

#include <cstdint>

#include "common/cuda_types.cuh"
#include "common/gemm_plan.h"
#include "common/launch.h"
#include "common/mma.cuh"

// C[i, j] = sum over k of A(i, k) B(j, k), with whatever an epilogue does to C.
//
// A block computes one tile of C. Its parts are exchangeable:
//   an Operand knows where A(outer, k) lies; its fetcher(first) brings tiles of the rows from
//   `first` on into shared memory, step by step, and keeps what a thread needs from one step to the
//   next; a Math multiplies two tiles and keeps the sums: TensorCore for 16-bit types, Simt for
//   f32, f64; an Epilogue takes eight neighbouring sums of a row and stores what it makes of them.
// Operands and epilogues are told with select(group) which of several products they serve.
// Tiles are fetched a few steps ahead in the background (cp.async), one barrier a step. Where C has
// too few tiles to fill a GPU, K is split: each block stores its partial sums, and a second kernel
// adds them in fixed order and hands them to the epilogue.

namespace lamina {

// Which index of an operand is contiguous in memory.
enum class Major { depth, outer };

// --- 16-bit types, tensor cores
// ---------------------------------------------------------------------

// A tile of 128 x 32 elements in chunks of 16 bytes: lines of 4 chunks along k, or of 16 along the
// outer index. The chunks of a line are permuted so that the eight lines that ldmatrix reads at a
// time lie in different banks.
template <typename T, Major major>
struct SwizzledTile {
  static constexpr int outer = 128, depth = 32, chunk_size = 8;
  static constexpr int line_chunks = (major == Major::depth ? depth : outer) / chunk_size;
  static constexpr int lines = (major == Major::depth ? outer : depth);

  alignas(128) T elements[outer * depth];

  __device__ T* chunk(int line, int index) {
    const int place = index ^ (major == Major::depth ? line / 2 % 4 : line % 8);
    return elements + (line * line_chunks + place) * chunk_size;
  }

  // The 16 x 16 part from (first, k) on as four 8 x 8 matrices, in the order that mma_16x8x16 takes
  // them: as an A operand, all of k = 0 .. 7 before k = 8 .. 15; as two B operands, one after the
  // other.
  __device__ void load_a(uint32_t (&fragment)[4], int first, int k) {
    const int lane = threadIdx.x % 32;
    load(fragment, first + lane / 8 % 2 * 8, k + lane / 16 * 8);
  }
  __device__ void load_b(uint32_t (&first_fragment)[2], uint32_t (&second_fragment)[2], int first,
                         int k) {
    const int lane = threadIdx.x % 32;
    uint32_t fragment[4];
    load(fragment, first + lane / 16 * 8, k + lane / 8 % 2 * 8);
    first_fragment[0] = fragment[0], first_fragment[1] = fragment[1];
    second_fragment[0] = fragment[2], second_fragment[1] = fragment[3];
  }

 private:
  // This lane's row is row lane % 8 of the 8 x 8 matrix at (first, k).
  __device__ void load(uint32_t (&fragment)[4], int first, int k) {
    const int row = threadIdx.x % 8;
    if constexpr (major == Major::depth)
      ldmatrix_x4(fragment, chunk(first + row, k / chunk_size));
    else
      ldmatrix_x4_trans(fragment, chunk(k + row, first / chunk_size));
  }
};

// The chunks of a tile that a thread fetches: one place in `count` lines, `step` lines apart.
template <class Tile, int threads>
struct ChunkOf {
  static constexpr int step = threads / Tile::line_chunks, count = Tile::lines / step;
  int line = threadIdx.x / Tile::line_chunks, index = threadIdx.x % Tile::line_chunks;
};

// A matrix in memory, `stride` elements between its lines. If `aligned`, lines start on multiples
// of 16 bytes; otherwise its elements are copied one by one.
template <typename T, Major major>
struct MatrixOperand {
  using Tile = SwizzledTile<T, major>;

  const T* data;
  int64_t stride, outer;
  bool aligned;

  MatrixOperand(const T* data, int64_t stride, int64_t outer)
      : data(data), stride(stride), outer(outer), aligned(is_aligned(data, stride)) {}

  // The groups' matrices lie one after the other.
  __device__ void select(int group) { data += group * outer * stride; }

  template <int threads>
  __device__ auto fetcher(int64_t first) const {
    return [=, *this, mine = ChunkOf<Tile, threads>()](Tile& tile, int64_t k, int64_t k_end) {
      constexpr bool by_depth = major == Major::depth;
      const int64_t line_begin = (by_depth ? first : k) + mine.line;
      const int64_t line_end = by_depth ? outer : k_end;
      const int64_t from = (by_depth ? k : first) + mine.index * Tile::chunk_size;
      const int64_t left = (by_depth ? k_end : outer) - from;
      const int count = left <= 0 ? 0 : left < Tile::chunk_size ? static_cast<int>(left) : 8;
      const T* source = data + line_begin * stride + from;
      if (aligned) {
#pragma unroll
        for (int n = 0; n < mine.count; ++n) {
          const bool exists = count && line_begin + n * mine.step < line_end;
          cp_async<16>(tile.chunk(mine.line + n * mine.step, mine.index),
                       exists ? source + n * mine.step * stride : data,
                       exists ? count * static_cast<int>(sizeof(T)) : 0);
        }
        return;
      }
#pragma unroll 1
      for (int n = 0; n < mine.count; ++n, source += mine.step * stride) {
        const bool exists = line_begin + n * mine.step < line_end;
        Pack<T> pack;
#pragma unroll
        for (int j = 0; j < Tile::chunk_size; ++j)
          pack.values[j] = exists && j < count ? source[j] : narrow<T>(0);
        store_pack(tile.chunk(mine.line + n * mine.step, mine.index), pack);
      }
    };
  }
};

// 128 x 128 sums by four warps, 64 x 64 each: on recent GPUs, smaller parts would be bound by the
// bandwidth of shared memory.
template <typename T>
struct TensorCore {
  static constexpr int rows = 128, columns = 128, depth = 32, threads = 128, stages = 4;
  static constexpr int blocks_per_multiprocessor = 2;

  using Number = float;

  float sums[4][8][4] = {};

  __device__ static int warp_row() { return threadIdx.x / 64 * 64; }
  __device__ static int warp_column() { return threadIdx.x / 32 % 2 * 64; }

  template <class TileA, class TileB>
  __device__ void multiply(TileA& a, TileB& b) {
#pragma unroll
    for (int k = 0; k < depth; k += 16) {
      uint32_t a_part[4][4], b_part[8][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) a.load_a(a_part[i], warp_row() + 16 * i, k);
#pragma unroll
      for (int j = 0; j < 8; j += 2) b.load_b(b_part[j], b_part[j + 1], warp_column() + 8 * j, k);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) mma_16x8x16<T>(sums[i][j], a_part[i], b_part[j]);
    }
  }

  template <class Staging>
  __device__ void stage(Staging& staging) const {
    const int group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int part = 0; part < 4; ++part)
          staging.sums[warp_row() + 16 * i + group + part / 2 * 8]
                      [warp_column() + 8 * j + pair + part % 2] = sums[i][j][part];
  }
};

// --- f32 and f64, ordinary arithmetic
// ---------------------------------------------------------------

template <typename T, int outer_size>
struct DepthTile {
  static constexpr int outer = outer_size, depth = 16;
  alignas(16) T elements[depth][outer + 16 / sizeof(T)];
};

// A matrix of any strides.
template <typename T, int outer_size>
struct StridedOperand {
  using Tile = DepthTile<T, outer_size>;

  const T* data;
  int64_t outer_stride, depth_stride, outer;

  __device__ void select(int group) { data += group * outer * outer_stride; }

  template <int threads>
  __device__ auto fetcher(int64_t first) const {
    return [=, *this](Tile& tile, int64_t k, int64_t k_end) {
      // Neighbouring threads take neighbours in memory.
      const bool along_depth = depth_stride == 1;
#pragma unroll 4
      for (int n = 0; n < Tile::outer * Tile::depth / threads; ++n) {
        const int i = threadIdx.x + n * threads;
        const int o = along_depth ? i / Tile::depth : i % Tile::outer;
        const int d = along_depth ? i % Tile::depth : i / Tile::outer;
        const bool exists = first + o < outer && k + d < k_end;
        const T* source =
            exists ? data + (first + o) * outer_stride + (k + d) * depth_stride : data;
        cp_async<sizeof(T)>(&tile.elements[d][o], source, exists ? sizeof(T) : 0);
      }
    };
  }
};

// 16 x 16 threads with thread_rows x 8 sums each.
template <typename T>
struct Simt {
  static constexpr int thread_rows = sizeof(T) == 4 ? 8 : 4;
  static constexpr int rows = 16 * thread_rows, columns = 16 * octet, depth = 16, threads = 256;
  static constexpr int stages = 3, blocks_per_multiprocessor = sizeof(T) == 4 ? 2 : 1;
  using Number = T;

  T sums[thread_rows][octet] = {};

  __device__ static int first_row() { return threadIdx.x / 16 * thread_rows; }
  __device__ static int first_column() { return threadIdx.x % 16 * octet; }

  template <class TileA, class TileB>
  __device__ void multiply(TileA& a, TileB& b) {
#pragma unroll
    for (int k = 0; k < depth; ++k) {
      T x[thread_rows], y[octet];
#pragma unroll
      for (int i = 0; i < thread_rows; ++i) x[i] = a.elements[k][first_row() + i];
#pragma unroll
      for (int j = 0; j < octet; ++j) y[j] = b.elements[k][first_column() + j];
#pragma unroll
      for (int i = 0; i < thread_rows; ++i)
#pragma unroll
        for (int j = 0; j < octet; ++j) sums[i][j] += x[i] * y[j];
    }
  }

  template <class Staging>
  __device__ void stage(Staging& staging) const {
#pragma unroll
    for (int i = 0; i < thread_rows; ++i)
      store_octet(&staging.sums[first_row() + i][first_column()], octet, true, sums[i]);
  }
};

// --- the kernels
// ------------------------------------------------------------------------------------

// The sums pass through shared memory to reach the epilogue in rows, the same way for every Math;
// 16 bytes more a row spread them over the banks.
template <class Math>
struct Staging {
  using Number = typename Math::Number;
  Number sums[Math::rows][Math::columns + 16 / sizeof(Number)];
};

template <class Math, class OperandA, class OperandB>
struct GemmShared {
  struct Stage {
    typename OperandA::Tile a;
    typename OperandB::Tile b;
  };
  union {
    Stage stages[Math::stages];
    Staging<Math> staging;
  };
};

template <typename Number>
__device__ __forceinline__ void store_partial(Number* partial, int64_t columns, int64_t column,
                                              const Number (&values)[octet]) {
  const int64_t left = columns - column;
  store_octet(partial, left < octet ? static_cast<int>(left) : octet, columns % octet == 0, values);
}

// Tiles are numbered in strips of eight tile rows, so that the blocks that run together share
// operands in the L2 cache.
struct TilePlace {
  int64_t row, column;
};
__device__ __forceinline__ TilePlace place_tile(int64_t index, int64_t tile_rows,
                                                int64_t tile_columns) {
  constexpr int64_t strip = 8;
  const int64_t first = index / (strip * tile_columns) * strip;
  const int64_t height = tile_rows - first < strip ? tile_rows - first : strip;
  const int64_t inside = index % (strip * tile_columns);
  return {first + inside % height, inside / height};
}

template <class Math, class OperandA, class OperandB, class Epilogue>
__global__ void __launch_bounds__(Math::threads, Math::blocks_per_multiprocessor)
    gemm_kernel(GemmPlan plan, OperandA a, OperandB b, Epilogue epilogue,
                typename Epilogue::Number* partial) {
  auto& shared = shared_memory<GemmShared<Math, OperandA, OperandB>>();
  const int group = blockIdx.z;
  a.select(group);
  b.select(group);
  epilogue.select(group);
  const TilePlace place = place_tile(blockIdx.x, ceil_div<int64_t>(plan.rows, Math::rows),
                                     ceil_div<int64_t>(plan.columns, Math::columns));
  const int64_t row = place.row * Math::rows, column = place.column * Math::columns;
  const int64_t k_begin = blockIdx.y * plan.split_depth;
  const int64_t k_end =
      k_begin + plan.split_depth < plan.depth ? k_begin + plan.split_depth : plan.depth;
  const int steps = static_cast<int>(ceil_div<int64_t>(k_end - k_begin, Math::depth));

  const auto fetch_a = a.template fetcher<Math::threads>(row);
  const auto fetch_b = b.template fetcher<Math::threads>(column);
  // Groups of copies are closed even when empty: the wait counts them.
  const auto fetch = [&](int step) {
    if (step < steps) {
      auto& stage = shared.stages[step % Math::stages];
      const int64_t k = k_begin + int64_t{step} * Math::depth;
      fetch_a(stage.a, k, k_end);
      fetch_b(stage.b, k, k_end);
    }
    cp_async_commit();
  };

  Math math;
  for (int step = 0; step < Math::stages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Math::stages - 2>();
    __syncthreads();  // This step's tiles are there, and those of the last step are free.
    fetch(step + Math::stages - 1);
    auto& stage = shared.stages[step % Math::stages];
    math.multiply(stage.a, stage.b);
  }
  cp_async_wait<0>();
  __syncthreads();
  math.stage(shared.staging);
  __syncthreads();
  constexpr int row_threads = Math::columns / octet;
  const int64_t j = column + threadIdx.x % row_threads * octet;
  for (int i = threadIdx.x / row_threads; i < Math::rows; i += Math::threads / row_threads) {
    if (row + i >= plan.rows || j >= plan.columns) break;
    typename Math::Number values[octet];
    load_octet(&shared.staging.sums[i][j - column], 1, octet, true, values);
    if (plan.splits == 1) {
      epilogue(row + i, j, values);
      continue;
    }
    const int64_t part = group * plan.splits + blockIdx.y;
    store_partial(partial + (part * plan.rows + row + i) * plan.columns + j, plan.columns, j,
                  values);
  }
}

// Adds the partial sums of the splits, in order.
template <class Epilogue>
__global__ void __launch_bounds__(256)
    gemm_reduce_kernel(GemmPlan plan, const typename Epilogue::Number* partial, Epilogue epilogue) {
  using Number = typename Epilogue::Number;
  const int64_t row_octets = ceil_div<int64_t>(plan.columns, octet);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = index / row_octets, column = index % row_octets * octet;
  if (row >= plan.rows) return;
  epilogue.select(blockIdx.z);
  const int64_t left = plan.columns - column;
  const int count = left < octet ? static_cast<int>(left) : octet;
  Number sums[octet] = {};
  for (int split = 0; split < plan.splits; ++split) {
    Number values[octet];
    const int64_t part = blockIdx.z * plan.splits + split;
    load_octet(partial + (part * plan.rows + row) * plan.columns + column, 1, count,
               plan.columns % octet == 0, values);
#pragma unroll
    for (int i = 0; i < octet; ++i) sums[i] += values[i];
  }
  epilogue(row, column, sums);
}

// `partial` has room for plan.partial_sums() numbers. Nothing is launched for an empty C.
template <class Math, class OperandA, class OperandB, class Epilogue>
void launch_gemm(const GemmPlan& plan, const OperandA& a, const OperandB& b,
                 const Epilogue& epilogue, typename Epilogue::Number* partial,
                 cudaStream_t stream) {
  const int64_t tiles =
      ceil_div<int64_t>(plan.rows, Math::rows) * ceil_div<int64_t>(plan.columns, Math::columns);
  if (tiles == 0) return;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(plan.splits),
                  static_cast<unsigned>(plan.groups));
  LAMINA_LAUNCH((gemm_kernel<Math, OperandA, OperandB, Epilogue>), grid, Math::threads,
                sizeof(GemmShared<Math, OperandA, OperandB>), stream, plan, a, b, epilogue,
                partial);
  if (plan.splits == 1) return;
  const int64_t octets = plan.rows * ceil_div<int64_t>(plan.columns, octet);
  const dim3 blocks(static_cast<unsigned>(ceil_div<int64_t>(octets, 256)), 1,
                    static_cast<unsigned>(plan.groups));
  LAMINA_LAUNCH(gemm_reduce_kernel<Epilogue>, blocks, 256, 0, stream, plan, partial, epilogue);
}

}  // namespace lamina

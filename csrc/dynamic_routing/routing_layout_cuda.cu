#include "dynamic_routing/routing_device.cuh"

namespace lamina {
namespace {

using namespace routing;

template <typename T>
struct TransposeTile {
  T values[lanes][lanes + 1];
};

template <typename T>
__global__ void __launch_bounds__(block_threads)
    transpose_kernel(const T* from, int64_t rows, int64_t columns, T* to) {
  auto& tile = shared_memory<TransposeTile<T>>();
  from += blockIdx.y * rows * columns;
  to += blockIdx.y * rows * columns;
  const int64_t column_tiles = ceil_div<int64_t>(columns, lanes);
  const int64_t row = blockIdx.x / column_tiles * lanes;
  const int64_t column = blockIdx.x % column_tiles * lanes;
  for (int i = threadIdx.y; i < lanes; i += warps)
    if (row + i < rows && column + threadIdx.x < columns)
      tile.values[i][threadIdx.x] = from[(row + i) * columns + column + threadIdx.x];
  __syncthreads();
  for (int i = threadIdx.y; i < lanes; i += warps)
    if (column + i < columns && row + threadIdx.x < rows)
      to[(column + i) * rows + row + threadIdx.x] = tile.values[threadIdx.x][i];
}

template <typename T>
__global__ void __launch_bounds__(block_threads)
    pack_weight_kernel(RoutingShape shape, const T* weight, WeightStrides strides, T* packed) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  const int64_t e = index % shape.padded_out(), row = index / shape.padded_out();
  const int64_t d = row % shape.padded_in(), capsule = row / shape.padded_in();
  const int64_t i = capsule % shape.weight_capsules(), j = capsule / shape.weight_capsules();
  if (j >= shape.out_capsules) return;
  packed[index] =
      d < shape.in_dim && e < shape.out_dim
          ? weight[j * strides.out + i * strides.in + e * strides.out_dim + d * strides.in_dim]
          : T(0);
}

}  // namespace

void launch_transpose(bool f64, const void* from, int64_t count, int64_t rows, int64_t columns,
                      void* to, cudaStream_t stream) {
  if (count * rows * columns == 0) return;
  with_type(f64, [&](auto zero) {
    using T = decltype(zero);
    const dim3 blocks(
        static_cast<unsigned>(ceil_div<int64_t>(rows, lanes) * ceil_div<int64_t>(columns, lanes)),
        static_cast<unsigned>(count));
    LAMINA_LAUNCH(transpose_kernel<T>, blocks, block, sizeof(TransposeTile<T>), stream,
                  static_cast<const T*>(from), rows, columns, static_cast<T*>(to));
  });
}

void launch_pack_weight(const RoutingShape& shape, const void* weight, const int64_t (&strides)[4],
                        void* packed, cudaStream_t stream) {
  if (shape.packed_weights() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(pack_weight_kernel<T>, blocks_for(shape.packed_weights(), block_threads),
                  block_threads, 0, stream, shape, static_cast<const T*>(weight),
                  weight_strides(strides), static_cast<T*>(packed));
  });
}

}  // namespace lamina

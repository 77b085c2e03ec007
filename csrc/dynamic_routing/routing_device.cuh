#pragma once

#include "common/cuda_types.cuh"
#include "common/launch.h"
#include "dynamic_routing/routing_cuda.h"

// What the kernels of routing share: lanes are samples, blocks are eight warps.

namespace lamina {
namespace routing {

constexpr int lanes = 32, warps = 8, block_threads = lanes * warps;
const dim3 block(lanes, warps);
constexpr int samples = 2;  // a lane's, so that a weight that was loaded serves 64 samples
constexpr int64_t group = lanes * samples;

template <typename Run>
void with_type(bool f64, const Run& run) {
  if (f64) return run(double{});
  run(float{});
}

inline unsigned blocks_for(int64_t work, int64_t per_block) {
  return static_cast<unsigned>(ceil_div(work, per_block));
}

template <typename T>
struct Links {
  const T* data;
  int64_t in_stride, out_stride, batch_stride;

  explicit Links(const RoutingLinks& links)
      : data(static_cast<const T*>(links.data)),
        in_stride(links.in_stride),
        out_stride(links.out_stride),
        batch_stride(links.batch_stride) {}

  __device__ T at(int64_t i, int64_t j, int64_t b, T otherwise) const {
    return data ? data[i * in_stride + j * out_stride + b * batch_stride] : otherwise;
  }
};

template <typename T>
__device__ void load_weights(const RoutingShape& shape, const T* weight, int64_t i, int64_t j,
                             int64_t d, int64_t e, T (&values)[octet]) {
  const int64_t capsule = j * shape.weight_capsules() + (shape.shared ? 0 : i);
  load_octet(weight + (capsule * shape.padded_in() + d) * shape.padded_out() + e, 1, octet, true,
             values);
}

// Elements e .. e + 7 of a vector of sample b; zeros where they don't exist.
template <typename T>
__device__ void load_vector(const RoutingShape& shape, const T* vectors, int64_t j, int64_t e,
                            int64_t b, T (&values)[octet]) {
#pragma unroll
  for (int k = 0; k < octet; ++k)
    values[k] = e + k < shape.out_dim && b < shape.batch
                    ? vectors[(j * shape.out_dim + e + k) * shape.batch + b]
                    : T(0);
}

// Where a block of lanes x warps threads works: groups of samples vary slowest.
struct Place {
  int64_t task, sample;
};
__device__ inline Place place_of(int64_t tasks, int64_t group_samples) {
  const int64_t task_blocks = ceil_div<int64_t>(tasks, warps);
  return {blockIdx.x % task_blocks * warps + threadIdx.y,
          blockIdx.x / task_blocks * group_samples + threadIdx.x};
}
inline unsigned place_blocks(int64_t tasks, int64_t batch, int64_t group_samples) {
  return static_cast<unsigned>(ceil_div<int64_t>(tasks, warps) * ceil_div(batch, group_samples));
}

template <typename T>
struct Reduction {
  T values[warps][lanes];

  // What `combine` makes of the values of the block's warps, lane by lane, in order.
  template <typename Combine>
  __device__ T across_warps(T value, const Combine& combine) {
    values[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    value = values[0][threadIdx.x];
    for (unsigned warp = 1; warp < blockDim.y; ++warp)
      value = combine(value, values[warp][threadIdx.x]);
    __syncthreads();
    return value;
  }
};

struct WeightStrides {
  int64_t out, in, out_dim, in_dim;
};

inline WeightStrides weight_strides(const int64_t (&strides)[4]) {
  return {strides[0], strides[1], strides[2], strides[3]};
}

// A chunk of in-capsules for each stage of a sum; enough chunks to fill a GPU with small layers.
constexpr int64_t most_chunks = 64;
inline int64_t chunk_of(const RoutingShape& shape) {
  return ceil_div(shape.in_capsules, most_chunks) > 0 ? ceil_div(shape.in_capsules, most_chunks)
                                                      : 1;
}

}  // namespace routing
}  // namespace lamina

#include "common/ceil_div.h"
#include "common/cuda_types.cuh"
#include "common/launch.h"
#include "threshold/threshold_cuda.h"

namespace lamina {
namespace {

constexpr int block_threads = 256;
constexpr int64_t max_blocks = 4096;  // a few waves on any GPU; beyond, each thread takes more

// A warp moves 512 contiguous bytes at a time, 16 for each lane. Eight elements share a byte of the
// mask, so that 8 / width neighbouring lanes put their bits together.
template <typename T>
struct Walk {
  static constexpr int width = Pack<T>::width;
  static constexpr int lanes_per_byte = 8 / width;

  int64_t n;
  bool aligned;

  // All lanes of a warp take part in every step, those beyond the end with nothing to do.
  template <typename Step>
  __device__ void operator()(const Step& step) const {
    const int64_t packs = (n + width - 1) / width;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t lane = threadIdx.x % 32;
    for (int64_t pack = first; pack - lane < packs; pack += stride) step(pack * width);
  }

  __device__ bool whole(int64_t i) const { return aligned && i + width <= n; }

  __device__ Pack<T> load(const T* memory, int64_t i) const {
    if (whole(i)) return load_pack(memory + i);
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < width; ++j) pack.values[j] = i + j < n ? memory[i + j] : narrow<T>(0);
    return pack;
  }

  __device__ void store(T* memory, int64_t i, const Pack<T>& pack) const {
    if (whole(i)) return store_pack(memory + i, pack);
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (i + j < n) memory[i + j] = pack.values[j];
  }
};

// `output` may be `input`: each element is read before it is written, by the same thread.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    threshold_forward_kernel(Walk<T> walk, const T* input, T* output, uint8_t* __restrict__ mask,
                             accumulator_t<T> threshold) {
  constexpr int width = Walk<T>::width, lanes_per_byte = Walk<T>::lanes_per_byte;
  walk([&](int64_t i) {
    Pack<T> x = walk.load(input, i);
    unsigned kept = 0;
#pragma unroll
    for (int j = 0; j < width; ++j) {
      if (widen(x.values[j]) <= threshold)
        x.values[j] = narrow<T>(0);
      else if (i + j < walk.n)
        kept |= 1u << j;
    }
    walk.store(output, i, x);
    if (!mask) return;
    const int place = threadIdx.x % lanes_per_byte;
    kept <<= place * width;
#pragma unroll
    for (int step = 1; step < lanes_per_byte; step *= 2)
      kept |= __shfl_xor_sync(0xffffffffu, kept, step);
    if (place == 0 && i < walk.n) mask[i / 8] = static_cast<uint8_t>(kept);
  });
}

template <typename T>
__global__ void __launch_bounds__(block_threads)
    threshold_backward_kernel(Walk<T> walk, const T* __restrict__ grad,
                              const uint8_t* __restrict__ mask, T* __restrict__ grad_input) {
  walk([&](int64_t i) {
    if (i >= walk.n) return;
    Pack<T> g = walk.load(grad, i);
    const unsigned kept = mask[i / 8] >> i % 8;
#pragma unroll
    for (int j = 0; j < Walk<T>::width; ++j)
      if (!(kept >> j & 1)) g.values[j] = narrow<T>(0);
    walk.store(grad_input, i, g);
  });
}

bool aligned(const void* a, const void* b) {
  return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % 16 == 0;
}

unsigned blocks_for(int64_t n, int width) {
  const int64_t blocks = ceil_div<int64_t>(n, int64_t{block_threads} * width);
  return static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks);
}

}  // namespace

void launch_threshold_forward(FloatType type, const void* input, void* output, uint8_t* mask,
                              int64_t n, double threshold, cudaStream_t stream) {
  if (n == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    const Walk<T> walk{n, aligned(input, output)};
    LAMINA_LAUNCH(threshold_forward_kernel<T>, blocks_for(n, walk.width), block_threads, 0, stream,
                  walk, static_cast<const T*>(input), static_cast<T*>(output), mask,
                  static_cast<accumulator_t<T>>(threshold));
  });
}

void launch_threshold_backward(FloatType type, const void* grad, const uint8_t* mask,
                               void* grad_input, int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    const Walk<T> walk{n, aligned(grad, grad_input)};
    LAMINA_LAUNCH(threshold_backward_kernel<T>, blocks_for(n, walk.width), block_threads, 0, stream,
                  walk, static_cast<const T*>(grad), mask, static_cast<T*>(grad_input));
  });
}

}  // namespace lamina

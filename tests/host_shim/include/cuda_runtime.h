#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_grid.h"

// The part of CUDA C++ that the kernels use, for the host compiler.

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __syncthreads() host_grid::sync_block(__LINE__)
#define __syncwarp() host_grid::sync_warp(__LINE__)

#define threadIdx host_grid::thread_index
#define blockIdx host_grid::block_index
#define blockDim host_grid::block_size
#define gridDim host_grid::grid_size

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
using cudaStream_t = void*;
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

// A vector of the compiler, so that it is moved in one access, whose alignment can be checked.
typedef unsigned uint4 __attribute__((vector_size(16), may_alias));
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return uint4{x, y, z, w};
}

template <typename T>
inline T __ldg(const T* pointer) {
  return *pointer;
}
template <typename T>
inline T __ldcs(const T* pointer) {
  return *pointer;
}
template <typename T>
inline void __stcs(T* pointer, T value) {
  *pointer = value;
}

namespace host_grid {
template <typename T, typename Choose>
T shuffle(unsigned mask, T value, const Choose& source) {
  if (mask != 0xffffffffu) fail("only shuffles of whole warps are modelled");
  const Package* given = exchange("shuffle", &value, sizeof(T));
  T result;
  __builtin_memcpy(&result, given[source(lane())].bytes, sizeof(T));
  return result;
}
inline unsigned ballot(unsigned mask, bool predicate) {
  if (mask != 0xffffffffu) fail("only votes of whole warps are modelled");
  const Package* given = exchange("vote", &predicate, sizeof(predicate));
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(given[i].bytes[0]) << i;
  return bits;
}
}  // namespace host_grid

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return host_grid::shuffle(
      mask, value, [=](int lane) { return (lane & ~(width - 1)) + (source & (width - 1)); });
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int = 32) {
  return host_grid::shuffle(mask, value, [=](int lane) { return lane ^ lane_mask; });
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return host_grid::shuffle(mask, value, [=](int lane) {
    return (lane & (width - 1)) + static_cast<int>(delta) < width ? lane + static_cast<int>(delta)
                                                                  : lane;
  });
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return host_grid::shuffle(mask, value, [=](int lane) {
    return (lane & (width - 1)) >= static_cast<int>(delta) ? lane - static_cast<int>(delta) : lane;
  });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return host_grid::ballot(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return host_grid::ballot(mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return host_grid::ballot(mask, predicate != 0) == 0xffffffffu;
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  for (int step = 16; step; step /= 2) value |= __shfl_xor_sync(mask, value, step);
  return value;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// One thread runs at a time, so a plain update is atomic; it is no race with other atomics.
namespace host_grid {
template <typename T, typename Update>
__attribute__((no_sanitize("thread"))) T atomic(T* address, const Update& update) {
  const T old = *address;
  *address = update(old);
  return old;
}
}  // namespace host_grid
template <typename T>
inline T atomicAdd(T* address, T value) {
  return host_grid::atomic(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
inline T atomicMax(T* address, T value) {
  return host_grid::atomic(address, [=](T old) { return std::max(old, value); });
}
template <typename T>
inline T atomicOr(T* address, T value) {
  return host_grid::atomic(address, [=](T old) { return static_cast<T>(old | value); });
}

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __uint_as_float(unsigned x) {
  float y;
  __builtin_memcpy(&y, &x, 4);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  __builtin_memcpy(&y, &x, 4);
  return y;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
using std::max;
using std::min;

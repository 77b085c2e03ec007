#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/float_type.h"

namespace lamina {

// Sums are kept in f32 for the 16-bit types, in the type itself otherwise.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T narrow(accumulator_t<T> x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

// What one thread moves in one access to memory.
template <typename T>
struct alignas(16) Pack {
  static constexpr int width = 16 / sizeof(T);
  T values[width];
};

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* pointer) {
  Pack<T> pack;
  *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(pointer);
  return pack;
}

template <typename T>
__device__ __forceinline__ void store_pack(T* pointer, const Pack<T>& value) {
  *reinterpret_cast<uint4*>(pointer) = *reinterpret_cast<const uint4*>(&value);
}

// Eight elements, the unit of rows: a byte of a mask has a bit for each. `count` of them exist.
constexpr int octet = 8;

template <typename T>
__device__ __forceinline__ void load_octet(const T* pointer, int64_t stride, int count,
                                           bool aligned, accumulator_t<T> (&values)[octet]) {
  constexpr int width = Pack<T>::width;
  if (aligned && count == octet) {
#pragma unroll
    for (int i = 0; i < octet; i += width) {
      const Pack<T> pack = load_pack(pointer + i);
#pragma unroll
      for (int j = 0; j < width; ++j) values[i + j] = widen(pack.values[j]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < octet; ++i)
    values[i] = i < count ? widen(pointer[i * stride]) : accumulator_t<T>(0);
}

template <typename T>
__device__ __forceinline__ void store_octet(T* pointer, int count, bool aligned,
                                            const accumulator_t<T> (&values)[octet]) {
  constexpr int width = Pack<T>::width;
  if (aligned && count == octet) {
#pragma unroll
    for (int i = 0; i < octet; i += width) {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < width; ++j) pack.values[j] = narrow<T>(values[i + j]);
      store_pack(pointer + i, pack);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < octet; ++i)
    if (i < count) pointer[i] = narrow<T>(values[i]);
}

// Whether octets can be moved in accesses of 16 bytes: each row, of `stride` elements, starts on a
// multiple of 16 bytes.
template <typename T>
bool is_aligned(const T* pointer, int64_t stride) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride * sizeof(T) % 16 == 0;
}

// Calls run(T{}) with the C++ type that `type` names.
template <typename Run>
void with_float_type(FloatType type, const Run& run) {
  switch (type) {
    case FloatType::f64:
      return run(double{});
    case FloatType::f32:
      return run(float{});
    case FloatType::bf16:
      return run(__nv_bfloat16{});
    case FloatType::f16:
      return run(__half{});
  }
}

}  // namespace lamina

#pragma once

#include <cstdint>

#if defined(__F16C__)
#  include <immintrin.h>
#endif

// Vectors of the instruction set that this file is compiled for (LAMINA_ISA), written with the
// compiler's vector extensions. Everything is internal to the including file: one function compiled
// for two instruction sets must never be merged into one.

namespace lamina {

// 16-bit storage types; arithmetic on them is done in float.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

namespace LAMINA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T>
constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(vector_bytes)));
  typedef int32_t mask __attribute__((vector_size(vector_bytes)));
  typedef float unaligned __attribute__((vector_size(vector_bytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(vector_bytes)));
  typedef int64_t mask __attribute__((vector_size(vector_bytes)));
  typedef double unaligned __attribute__((vector_size(vector_bytes), aligned(8), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
// What a comparison of two vectors gives: all ones or all zeros in each lane.
template <class T>
using Mask = typename VectorOf<T>::mask;

// The type sums are kept in: float for the 16-bit types.
template <class T>
struct AccumulatorOf {
  typedef T type;
};
template <>
struct AccumulatorOf<bfloat16> {
  typedef float type;
};
template <>
struct AccumulatorOf<float16> {
  typedef float type;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

typedef uint16_t HalfVector __attribute__((vector_size(vector_bytes / 2)));
typedef uint16_t UnalignedHalfVector
    __attribute__((vector_size(vector_bytes / 2), aligned(2), may_alias));
typedef uint32_t WordVector __attribute__((vector_size(vector_bytes)));

inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class T>
inline Vector<T> broadcast(T value) {
  return value - Vector<T>{};  // x - 0 is x, also for -0
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "common/vec_types.h"

// What comparisons give, to bits and back.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// One bit a lane, lane 0 lowest.
#if defined(__AVX512F__)
inline uint32_t mask_bits(Mask<float> mask) { return _mm512_movepi32_mask((__m512i)mask); }
inline uint32_t mask_bits(Mask<double> mask) { return _mm512_movepi64_mask((__m512i)mask); }
inline Mask<float> bits_mask(uint32_t bits, float) {
  return (Mask<float>)_mm512_movm_epi32((__mmask16)bits);
}
inline Mask<double> bits_mask(uint32_t bits, double) {
  return (Mask<double>)_mm512_movm_epi64((__mmask8)bits);
}
#else
#  if defined(__AVX2__)
inline uint32_t mask_bits(Mask<float> mask) { return _mm256_movemask_ps((__m256)mask); }
inline uint32_t mask_bits(Mask<double> mask) { return _mm256_movemask_pd((__m256d)mask); }
#  else
template <class M>
inline uint32_t mask_bits(M mask) {
  uint32_t bits = 0;
  for (unsigned lane = 0; lane < sizeof(M) / sizeof(mask[0]); ++lane)
    bits |= (mask[lane] & 1u) << lane;
  return bits;
}
#  endif
template <class T>
inline Mask<T> bits_mask(uint32_t bits, T) {
  Mask<T> lane_bit{};
#  pragma GCC unroll 16
  for (int lane = 0; lane < lanes<T>; ++lane) lane_bit[lane] = 1 << lane;
  return (Mask<T>)(((Mask<T>{} + bits) & lane_bit) != 0);
}
#endif

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

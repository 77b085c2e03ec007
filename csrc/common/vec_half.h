#pragma once

#include "common/vec_types.h"

// 16-bit numbers to float32 and back, a vector of them at a time.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// GCC 12 converts between elements of 16 and 32 bits in halves of a vector, at twice the cost.
#if defined(__AVX512F__)
// With a mask of all lanes, which changes no instruction: GCC 12 warns of the forms without one.
inline WordVector words(HalfVector half) {
  return (WordVector)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)half);
}
inline HalfVector halves(WordVector words) {
  return (HalfVector)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)words);
}
#elif defined(__AVX2__)
inline WordVector words(HalfVector half) {
  return (WordVector)_mm256_cvtepu16_epi32((__m128i)half);
}
// Words below 2^16 only.
inline HalfVector halves(WordVector words) {
  const __m256i all = (__m256i)words;
  return (HalfVector)_mm_packus_epi32(_mm256_castsi256_si128(all),
                                      _mm256_extracti128_si256(all, 1));
}
#else
inline WordVector words(HalfVector half) { return __builtin_convertvector(half, WordVector); }
inline HalfVector halves(WordVector words) { return __builtin_convertvector(words, HalfVector); }
#endif

inline Vector<float> expand(HalfVector half, bfloat16) {
  return (Vector<float>)(words(half) << 16);
}

inline HalfVector shrink(Vector<float> value, bfloat16) {
  const WordVector bits = (WordVector)value;
  const WordVector rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const WordVector quiet_nan = bits | 0x400000;
  return halves(((value == value) ? rounded : quiet_nan) >> 16);
}

#if defined(__AVX512F__)
inline Vector<float> expand(HalfVector half, float16) {
  return (Vector<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)half);
}
inline HalfVector shrink(Vector<float> value, float16) {
  return (HalfVector)_mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__)
inline Vector<float> expand(HalfVector half, float16) {
  return (Vector<float>)_mm256_cvtph_ps((__m128i)half);
}
inline HalfVector shrink(Vector<float> value, float16) {
  return (HalfVector)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
}
#else
inline Vector<float> expand(HalfVector half, float16) {
  const WordVector word = words(half);
  const WordVector sign = (word & 0x8000) << 16, rest = (word & 0x7fff) << 13;
  // Multiplying by 2^112 moves the exponent's bias and makes subnormals normal.
  const WordVector scaled = (WordVector)((Vector<float>)rest * 0x1p112f);
  const WordVector special = rest | 0x7f800000;
  return (Vector<float>)(sign | (rest >= 0x0f800000 ? special : scaled));
}
inline HalfVector shrink(Vector<float> value, float16) {
  const WordVector bits = (WordVector)value, sign = (bits >> 16) & 0x8000;
  const WordVector magnitude = bits & 0x7fffffff;
  const WordVector normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 shifts a subnormal half's bits to the bottom, rounded to nearest even.
  const WordVector subnormal = (WordVector)((Vector<float>)magnitude + 0.5f) - 0x3f000000;
  WordVector half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? WordVector{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? WordVector{} + 0x7e00 : half;
  return halves(half | sign);
}
#endif

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "common/vec_half.h"

// Loads and stores, of whole vectors, of the first few lanes and of single elements.

namespace lamina {
namespace LAMINA_ISA {
namespace {

inline Vector<float> load(const float* source) {
  return *reinterpret_cast<const VectorOf<float>::unaligned*>(source);
}
inline Vector<double> load(const double* source) {
  return *reinterpret_cast<const VectorOf<double>::unaligned*>(source);
}
template <class T>
inline Vector<float> load(const T* source) {
  return expand(*reinterpret_cast<const UnalignedHalfVector*>(source), T{});
}

inline void store(float* target, Vector<float> value) {
  *reinterpret_cast<VectorOf<float>::unaligned*>(target) = value;
}
inline void store(double* target, Vector<double> value) {
  *reinterpret_cast<VectorOf<double>::unaligned*>(target) = value;
}
template <class T>
inline void store(T* target, Vector<float> value) {
  *reinterpret_cast<UnalignedHalfVector*>(target) = shrink(value, T{});
}

// One element.
inline float load_element(const float* source) { return *source; }
inline double load_element(const double* source) { return *source; }
inline float load_element(const bfloat16* source) {
  return bits_to_float(static_cast<uint32_t>(source->bits) << 16);
}
inline float load_element(const float16* source) {
  HalfVector half{};
  half[0] = source->bits;
  return expand(half, float16{})[0];
}

// Elements `stride` apart, the first `count` lanes, the rest 0.
template <class T>
inline Vector<Accumulator<T>> gather(const T* source, int64_t stride, int count) {
  T elements[lanes<Accumulator<T>>] = {};
  for (int lane = 0; lane < count; ++lane) elements[lane] = source[lane * stride];
  return load(elements);
}

// load(source, count): the first `count` lanes, the rest 0; nothing past them is read.
// store(target, value, count): only the first `count` lanes are written.
#if defined(__AVX512F__)
inline Vector<float> load(const float* source, int count) {
  return (Vector<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), source);
}
inline Vector<double> load(const double* source, int count) {
  return (Vector<double>)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), source);
}
template <class T>
inline Vector<float> load(const T* source, int count) {
  return expand((HalfVector)_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), source), T{});
}
inline void store(float* target, Vector<float> value, int count) {
  _mm512_mask_storeu_ps(target, (__mmask16)((1u << count) - 1), (__m512)value);
}
inline void store(double* target, Vector<double> value, int count) {
  _mm512_mask_storeu_pd(target, (__mmask8)((1u << count) - 1), (__m512d)value);
}
template <class T>
inline void store(T* target, Vector<float> value, int count) {
  _mm256_mask_storeu_epi16(target, (__mmask16)((1u << count) - 1), (__m256i)shrink(value, T{}));
}
#elif defined(__AVX2__)
// AVX2 masks 32 and 64 bits only, and its masked stores are slow on some CPUs: parts of 8, 4 and 2
// bytes serve instead. Going through memory element by element would wait for the stores.
template <class Part>
inline Part load_part(const void* source) {
  Part part;
  __builtin_memcpy(&part, source, sizeof part);
  return part;
}
template <class Part>
inline void store_part(char*& target, __m128i& value) {
  const Part part = static_cast<Part>(_mm_cvtsi128_si64(value));
  __builtin_memcpy(target, &part, sizeof part);
  target += sizeof part;
  value = _mm_srli_si128(value, sizeof part);
}
inline void store_bytes(void* to, __m128i value, int bytes) {
  char* target = static_cast<char*>(to);
  if (bytes & 8) store_part<uint64_t>(target, value);
  if (bytes & 4) store_part<uint32_t>(target, value);
  if (bytes & 2) store_part<uint16_t>(target, value);
}
inline void store_bytes(void* target, __m256i value, int bytes) {
  __m128i low = _mm256_castsi256_si128(value);
  if (bytes & 16) {
    _mm_storeu_si128(static_cast<__m128i*>(target), low);
    target = static_cast<char*>(target) + 16;
    low = _mm256_extracti128_si256(value, 1);
  }
  store_bytes(target, low, bytes & 15);
}

inline Vector<float> load(const float* source, int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Vector<float>)_mm256_maskload_ps(source,
                                           _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
}
inline Vector<double> load(const double* source, int count) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return (Vector<double>)_mm256_maskload_pd(source,
                                            _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane));
}
// A whole part from either end: they overlap, and a shift drops what both hold.
template <class T>
inline Vector<float> load(const T* source, int count) {
  uint64_t low = 0, high = 0;
  if (count >= 8) {
    return load(source);
  } else if (count >= 4) {
    low = load_part<uint64_t>(source);
    if (count > 4) high = load_part<uint64_t>(source + count - 4) >> (16 * (8 - count));
  } else if (count >= 2) {
    low = load_part<uint32_t>(source);
    if (count > 2) low |= static_cast<uint64_t>(source[2].bits) << 32;
  } else if (count > 0) {
    low = source->bits;
  }
  return expand((HalfVector)_mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low)),
                T{});
}
inline void store(float* target, Vector<float> value, int count) {
  if (count == lanes<float>) return store(target, value);
  store_bytes(target, (__m256i)value, 4 * count);
}
inline void store(double* target, Vector<double> value, int count) {
  if (count == lanes<double>) return store(target, value);
  store_bytes(target, (__m256i)value, 8 * count);
}
template <class T>
inline void store(T* target, Vector<float> value, int count) {
  if (count == lanes<float>) return store(target, value);
  store_bytes(target, (__m128i)shrink(value, T{}), 2 * count);
}
#else
template <class T>
inline Vector<Accumulator<T>> load(const T* source, int count) {
  return gather(source, 1, count);
}
template <class T>
inline void store(T* target, Vector<Accumulator<T>> value, int count) {
  T elements[lanes<Accumulator<T>>];
  store(elements, value);
  for (int lane = 0; lane < count; ++lane) target[lane] = elements[lane];
}
#endif

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

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

// GCC 12 converts between elements of 16 and 32 bits in halves of a vector, at twice the cost.
#if defined(__AVX512F__)
inline WordVector words(HalfVector half) {
  return (WordVector)_mm512_cvtepu16_epi32((__m256i)half);
}
inline HalfVector halves(WordVector words) {
  return (HalfVector)_mm512_cvtepi32_epi16((__m512i)words);
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
// With a mask of all lanes, which changes no instruction: GCC 12 warns of the forms without one.
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

// In-register transposition of lanes x lanes: first inside the 128-bit lanes, then of the lanes.
#if defined(__AVX512F__)
#  define LAMINA_LOW_WORDS 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#  define LAMINA_HIGH_WORDS 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#  define LAMINA_LOW_PAIRS 0, 8, 2, 10, 4, 12, 6, 14
#  define LAMINA_HIGH_PAIRS 1, 9, 3, 11, 5, 13, 7, 15
#elif defined(__AVX2__)
#  define LAMINA_LOW_WORDS 0, 8, 1, 9, 4, 12, 5, 13
#  define LAMINA_HIGH_WORDS 2, 10, 3, 11, 6, 14, 7, 15
#  define LAMINA_LOW_PAIRS 0, 4, 2, 6
#  define LAMINA_HIGH_PAIRS 1, 5, 3, 7
#else
#  define LAMINA_LOW_WORDS 0, 4, 1, 5
#  define LAMINA_HIGH_WORDS 2, 6, 3, 7
#  define LAMINA_LOW_PAIRS 0, 2
#  define LAMINA_HIGH_PAIRS 1, 3
#endif

inline Vector<double> low_pairs(Vector<double> a, Vector<double> b) {
  return __builtin_shufflevector(a, b, LAMINA_LOW_PAIRS);
}
inline Vector<double> high_pairs(Vector<double> a, Vector<double> b) {
  return __builtin_shufflevector(a, b, LAMINA_HIGH_PAIRS);
}

// rows[group * step + j], group = 0..(128-bit lanes of a vector - 1): a square of 128-bit lanes.
inline void transpose_lanes(Vector<double>* rows, int step) {
#if defined(__AVX512F__)
  const auto even = [](Vector<double> a, Vector<double> b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13);
  };
  const auto odd = [](Vector<double> a, Vector<double> b) {
    return __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
  };
#  pragma GCC unroll 4
  for (int j = 0; j < step; ++j) {
    Vector<double>*r = rows + j, a = even(r[0], r[step]), b = even(r[2 * step], r[3 * step]),
    c = odd(r[0], r[step]), d = odd(r[2 * step], r[3 * step]);
    r[0] = even(a, b);
    r[step] = even(c, d);
    r[2 * step] = odd(a, b);
    r[3 * step] = odd(c, d);
  }
#elif defined(__AVX2__)
#  pragma GCC unroll 4
  for (int j = 0; j < step; ++j) {
    const Vector<double> a = rows[j], b = rows[step + j];
    rows[j] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    rows[step + j] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  }
#else
  (void)rows, (void)step;
#endif
}

inline void transpose(Vector<double> (&rows)[lanes<double>]) {
#pragma GCC unroll 8
  for (int group = 0; group < lanes<double>; group += 2) {
    const Vector<double> a = rows[group], b = rows[group + 1];
    rows[group] = low_pairs(a, b);
    rows[group + 1] = high_pairs(a, b);
  }
  transpose_lanes(rows, 2);
}

inline void transpose(Vector<float> (&rows)[lanes<float>]) {
  Vector<double> pairs[lanes<float>];
#pragma GCC unroll 16
  for (int group = 0; group < lanes<float>; group += 4) {
    const Vector<float>* r = rows + group;
    const auto low = [](Vector<float> a, Vector<float> b) {
      return (Vector<double>)__builtin_shufflevector(a, b, LAMINA_LOW_WORDS);
    };
    const auto high = [](Vector<float> a, Vector<float> b) {
      return (Vector<double>)__builtin_shufflevector(a, b, LAMINA_HIGH_WORDS);
    };
    const Vector<double> a = low(r[0], r[1]), b = low(r[2], r[3]);
    const Vector<double> c = high(r[0], r[1]), d = high(r[2], r[3]);
    pairs[group] = low_pairs(a, b);
    pairs[group + 1] = high_pairs(a, b);
    pairs[group + 2] = low_pairs(c, d);
    pairs[group + 3] = high_pairs(c, d);
  }
  transpose_lanes(pairs, 4);
#pragma GCC unroll 16
  for (int row = 0; row < lanes<float>; ++row) rows[row] = (Vector<float>)pairs[row];
}

#undef LAMINA_LOW_WORDS
#undef LAMINA_HIGH_WORDS
#undef LAMINA_LOW_PAIRS
#undef LAMINA_HIGH_PAIRS

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "common/vec_types.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

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

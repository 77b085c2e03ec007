#pragma once

#include "dynamic_routing/lanes.h"

// Between rows of numbers in memory and packs of samples.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Which lanes of two vectors make the first and the second of them after blocks of `half` lanes
// have changed places.
template <class P, int HALF>
struct Exchange {
  static constexpr int width = P::width;
  typename P::Bit low[width], high[width];
  constexpr Exchange() : low(), high() {
    for (int l = 0; l < width; ++l) {
      low[l] = l & HALF ? width + l - HALF : l;
      high[l] = l & HALF ? width + l : l + HALF;
    }
  }
};

template <class P, int HALF>
LAMINA_INLINE void exchange(typename P::Vec (&a)[P::width]) {
  static constexpr Exchange<P, HALF> lanes;
  typename P::Bits low, high;
  __builtin_memcpy(&low, lanes.low, sizeof low);
  __builtin_memcpy(&high, lanes.high, sizeof high);
#pragma GCC unroll 16
  for (int r = 0; r < P::width; ++r) {
    if (r & HALF) continue;
    const typename P::Vec first = a[r], second = a[r + HALF];
    a[r] = __builtin_shuffle(first, second, low);
    a[r + HALF] = __builtin_shuffle(first, second, high);
  }
}

// Element c of vector r and element r of vector c change places.
template <class P>
LAMINA_INLINE void transpose(typename P::Vec (&a)[P::width]) {
  if constexpr (P::width > 8) exchange<P, 8>(a);
  if constexpr (P::width > 4) exchange<P, 4>(a);
  if constexpr (P::width > 2) exchange<P, 2>(a);
  if constexpr (P::width > 1) exchange<P, 1>(a);
}

// Lane r of the result is the sum of the lanes of vector r.
template <class P, int HALF = P::width / 2>
LAMINA_INLINE typename P::Vec lane_sums(typename P::Vec (&a)[2 * HALF]) {
  static constexpr Exchange<P, HALF> lanes;
  typename P::Bits low, high;
  __builtin_memcpy(&low, lanes.low, sizeof low);
  __builtin_memcpy(&high, lanes.high, sizeof high);
  typename P::Vec sum[HALF];
#pragma GCC unroll 16
  for (int r = 0; r < HALF; ++r)
    sum[r] = __builtin_shuffle(a[r], a[r + HALF], low) + __builtin_shuffle(a[r], a[r + HALF], high);
  if constexpr (HALF > 1)
    return lane_sums<P, HALF / 2>(sum);
  else
    return sum[0];
}

// Some numbers at p, or to p; a vector's worth at most.
template <class P, class T>
LAMINA_INLINE typename P::Vec load_some(const T* p, int count) {
  typename P::Vec x = {};
  if (count == P::width)
    x = *reinterpret_cast<const typename P::UnalignedVec*>(p);
  else
    for (int k = 0; k < count; ++k) x[k] = p[k];
  return x;
}
template <class P, class T>
LAMINA_INLINE void store_some(T* p, const typename P::Vec& x, int count) {
  if (count == P::width)
    *reinterpret_cast<typename P::UnalignedVec*>(p) = x;
  else if (2 * count == P::width)
    __builtin_memcpy(p, &x, sizeof(x) / 2);
  else
    for (int k = 0; k < count; ++k) p[k] = x[k];
}

// From `count` rows of numbers, one a sample and `stride` apart, to packs; 0 past `count`. Those
// `ahead` will be read next. Loops of a known length keep the vectors in registers.
template <class P, class T>
inline void to_packs(const T* from, int64_t stride, int count, int64_t columns, T* to,
                     int64_t ahead = 0) {
  using Vec = typename P::Vec;
  constexpr int width = P::width;
  for (int64_t c = 0; c < columns; c += width)
    for (int lane = 0; lane < P::samples; lane += width) {
      const int filled = columns - c < width ? int(columns - c) : width;
      const T* row = from + lane * stride + c;
      T* pack = to + c * P::samples + lane;
      Vec a[width];
      if (filled == width && lane + width <= count) {
#pragma GCC unroll 16
        for (int r = 0; r < width; ++r) {
          a[r] = *reinterpret_cast<const typename P::UnalignedVec*>(row + r * stride);
          __builtin_prefetch(row + r * stride + ahead);
        }
        transpose<P>(a);
#pragma GCC unroll 16
        for (int k = 0; k < width; ++k) *reinterpret_cast<Vec*>(pack + k * P::samples) = a[k];
      } else {
        for (int r = 0; r < width; ++r)
          a[r] = load_some<P>(row + r * stride, lane + r < count ? filled : 0);
        transpose<P>(a);
        for (int k = 0; k < filled; ++k) *reinterpret_cast<Vec*>(pack + k * P::samples) = a[k];
      }
    }
}

// And back.
template <class P, class T>
inline void from_packs(const T* from, int64_t columns, T* to, int64_t stride, int count,
                       int64_t ahead = 0) {
  using Vec = typename P::Vec;
  constexpr int width = P::width;
  for (int64_t c = 0; c < columns; c += width)
    for (int lane = 0; lane < count; lane += width) {
      const int filled = columns - c < width ? int(columns - c) : width;
      const T* pack = from + c * P::samples + lane;
      T* row = to + lane * stride + c;
      Vec a[width];
      if (filled == width && lane + width <= count) {
#pragma GCC unroll 16
        for (int k = 0; k < width; ++k) a[k] = *reinterpret_cast<const Vec*>(pack + k * P::samples);
        transpose<P>(a);
#pragma GCC unroll 16
        for (int r = 0; r < width; ++r) {
          __builtin_prefetch(row + r * stride + ahead, 1);
          *reinterpret_cast<typename P::UnalignedVec*>(row + r * stride) = a[r];
        }
      } else {
        for (int k = 0; k < width; ++k)
          a[k] = k < filled ? *reinterpret_cast<const Vec*>(pack + k * P::samples) : Vec{};
        transpose<P>(a);
#pragma GCC unroll 16
        for (int r = 0; r < width; ++r) {
          if (lane + r >= count) break;
          __builtin_prefetch(row + r * stride + ahead, 1);
          store_some<P>(row + r * stride, a[r], filled);
        }
      }
    }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

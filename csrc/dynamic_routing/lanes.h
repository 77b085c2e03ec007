#pragma once

#include <cstdint>

// Samples side by side: a Pack holds one number of each of `samples` samples, so a dot product over
// a capsule's dimension, a softmax over capsules and a weighted sum need no shuffle at all.
// For per-ISA sources only: nothing here has linkage.

namespace lamina {
namespace LAMINA_ISA {
namespace {

#define LAMINA_INLINE inline __attribute__((always_inline))

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, degree = 7;
  static constexpr float lowest = -87.3f, shift = 12582912.f;  // 1.5 * 2^23
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};

template <>
struct ExpConstants<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, degree = 13;
  static constexpr double lowest = -708.0, shift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
};

constexpr double inverse_factorial(int m) { return m == 0 ? 1.0 : inverse_factorial(m - 1) / m; }

template <class T, int WIDTH, int VECTORS>
struct Pack {
  typedef T Vec __attribute__((vector_size(WIDTH * sizeof(T))));
  typedef typename ExpConstants<T>::Bits Bit;
  typedef Bit Bits __attribute__((vector_size(WIDTH * sizeof(T))));
  typedef T UnalignedVec
      __attribute__((vector_size(WIDTH * sizeof(T)), aligned(sizeof(T)), may_alias));
  static constexpr int width = WIDTH, vectors = VECTORS, samples = WIDTH * VECTORS;

  Vec part[VECTORS];

  template <class F>
  static LAMINA_INLINE Pack each(const F& f) {
    Pack r;
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) r.part[n] = f(n);
    return r;
  }
  static LAMINA_INLINE Pack fill(T x) {
    return each([&](int) { return x - Vec{}; });  // not x + 0, which -0 keeps from folding
  }
  static LAMINA_INLINE Pack load(const T* p) {
    return each([&](int n) { return reinterpret_cast<const Vec*>(p)[n]; });
  }
  LAMINA_INLINE void store(T* p) const {
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) reinterpret_cast<Vec*>(p)[n] = part[n];
  }
  // One number of each sample, `stride` apart in memory; 0 past `count` samples.
  static LAMINA_INLINE Pack gather(const T* p, int64_t stride, int count) {
    alignas(64) T lanes[samples];
    if (count == samples) {
#pragma GCC unroll 16
      for (int l = 0; l < samples; ++l) lanes[l] = p[l * stride];
    } else {
      for (int l = 0; l < samples; ++l) lanes[l] = l < count ? p[l * stride] : T(0);
    }
    return load(lanes);
  }
  LAMINA_INLINE void scatter(T* p, int64_t stride, int count) const {
    alignas(64) T lanes[samples];
    store(lanes);
    if (count == samples) {
#pragma GCC unroll 16
      for (int l = 0; l < samples; ++l) p[l * stride] = lanes[l];
    } else {
      for (int l = 0; l < count; ++l) p[l * stride] = lanes[l];
    }
  }

  friend LAMINA_INLINE Pack operator+(const Pack& a, const Pack& b) {
    return each([&](int n) { return a.part[n] + b.part[n]; });
  }
  friend LAMINA_INLINE Pack operator-(const Pack& a, const Pack& b) {
    return each([&](int n) { return a.part[n] - b.part[n]; });
  }
  friend LAMINA_INLINE Pack operator*(const Pack& a, const Pack& b) {
    return each([&](int n) { return a.part[n] * b.part[n]; });
  }
  friend LAMINA_INLINE Pack operator*(T a, const Pack& b) {
    return each([&](int n) { return a * b.part[n]; });
  }
  friend LAMINA_INLINE Pack operator/(const Pack& a, const Pack& b) {
    return each([&](int n) { return a.part[n] / b.part[n]; });
  }
  LAMINA_INLINE Pack& operator+=(const Pack& b) { return *this = *this + b; }

  static LAMINA_INLINE Pack max(const Pack& a, const Pack& b) {
    return each([&](int n) { return a.part[n] > b.part[n] ? a.part[n] : b.part[n]; });
  }
  // e^x for x <= 0: 0 where the result would be subnormal, NaN where x is NaN.
  static LAMINA_INLINE Pack exp(const Pack& x) {
    using C = ExpConstants<T>;
    return each([&](int n) {
      const Vec a = x.part[n], shifted = a * T(1.44269504088896340736) + C::shift;
      const Vec k = shifted - C::shift;
      const Vec rest = (a - k * C::ln2_high) - k * C::ln2_low;
      Vec y = Vec{} + T(inverse_factorial(C::degree));
#pragma GCC unroll 16
      for (int m = C::degree - 1; m >= 0; --m) y = y * rest + T(inverse_factorial(m));
      // 2^k: the low bits of `shifted` hold k. Multiplying, not adding exponents, keeps NaN.
      const Bits power = ((Bits)shifted << C::mantissa) + (Bits)(Vec{} + T(1));
      return a < C::lowest ? Vec{} : y * (Vec)power;
    });
  }
};

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, accumulators = 16;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, accumulators = 8;
#else
constexpr int vector_bytes = 16, accumulators = 8;
#endif

// f(Pack) with the tile for so many samples. In two vectors at once an element of the weight that
// is broadcast meets both: with one, the loads would hold the arithmetic up.
template <class T, class F>
void with_tile(int64_t batch, const F& f) {
  constexpr int width = vector_bytes / sizeof(T);
  if (vector_bytes == 64 && batch <= width / 2)
    return f(Pack<T, vector_bytes == 64 ? width / 2 : width, 1>{});
  if (batch <= width) return f(Pack<T, width, 1>{});
  f(Pack<T, width, 2>{});
}

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

// From `count` rows of numbers, one a sample and `stride` apart, to packs; 0 past `count`.
template <class P, class T>
inline void to_packs(const T* from, int64_t stride, int count, int64_t columns, T* to) {
  using Vec = typename P::Vec;
  constexpr int width = P::width;
  for (int64_t c = 0; c < columns; c += width)
    for (int lane = 0; lane < P::samples; lane += width) {
      const int filled = columns - c < width ? int(columns - c) : width;
      const T* row = from + lane * stride + c;
      Vec a[width];
      if (filled == width && lane + width <= count) {
#pragma GCC unroll 16
        for (int r = 0; r < width; ++r)
          a[r] = *reinterpret_cast<const typename P::UnalignedVec*>(row + r * stride);
      } else {
        for (int r = 0; r < width; ++r)
          a[r] = load_some<P>(row + r * stride, lane + r < count ? filled : 0);
      }
      transpose<P>(a);
      for (int k = 0; k < filled; ++k)
        *reinterpret_cast<Vec*>(to + (c + k) * P::samples + lane) = a[k];
    }
}

// And back.
template <class P, class T>
inline void from_packs(const T* from, int64_t columns, T* to, int64_t stride, int count) {
  using Vec = typename P::Vec;
  constexpr int width = P::width;
  for (int64_t c = 0; c < columns; c += width)
    for (int lane = 0; lane < count; lane += width) {
      const int filled = columns - c < width ? int(columns - c) : width;
      Vec a[width];
#pragma GCC unroll 16
      for (int k = 0; k < width; ++k)
        a[k] =
            k < filled ? *reinterpret_cast<const Vec*>(from + (c + k) * P::samples + lane) : Vec{};
      transpose<P>(a);
      for (int r = 0; r < width && lane + r < count; ++r)
        store_some<P>(to + (lane + r) * stride + c, a[r], filled);
    }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

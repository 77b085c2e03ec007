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
  // In registers: GCC would give each multiply-add that it meets a load of its own.
  LAMINA_INLINE const Pack& held() {
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) {
#if defined(__x86_64__)
      asm("" : "+v"(part[n]));
#elif defined(__aarch64__)
      asm("" : "+w"(part[n]));
#endif
    }
    return *this;
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
  LAMINA_INLINE T sum() const {
    alignas(64) T lanes[samples];
    store(lanes);
#pragma GCC unroll 8
    for (int half = samples / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    return lanes[0];
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

// f(Pack) with the tile for so many samples, or for teams of them (capsule_lanes.h). In two vectors
// at once an element of the weight that is broadcast meets both: with one, the loads would hold the
// arithmetic up.
template <class T, class F>
void with_tile(int64_t batch, bool teams, const F& f) {
  constexpr int width = vector_bytes / sizeof(T);
  if (vector_bytes == 64 && (teams || batch <= width / 2))
    return f(Pack<T, vector_bytes == 64 ? width / 2 : width, 1>{});
  if (teams || batch <= width) return f(Pack<T, width, 1>{});
  f(Pack<T, width, 2>{});
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "dynamic_routing/products.h"
#include "dynamic_routing/transpose.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Outer products [rows, depth] of packs x and y, summed over samples: the gradient of a matrix. The
// sums are vectors of rows, for one column after the other.
template <class P, class T>
struct OuterProducts {
  int64_t rows, depth;

  int64_t numbers() const { return ceil_div(rows, P::width) * P::width * depth; }

  // sums += sum over `count` samples of x [rows] y [depth]. x is transposed, so that no sum over
  // lanes remains.
  void add(const T* x, const T* y, int count, T* sums) const {
    using Vec = typename P::Vec;
    constexpr int width = P::width;
    for (int64_t row = 0; row < rows; row += 2 * width, sums += 2 * width * depth) {
      alignas(64) T turned[P::samples][2][width];
      for (int half = 0; half < 2; ++half)
        for (int lane = 0; lane < P::samples; lane += width) {
          Vec a[width];
#pragma GCC unroll 16
          for (int r = 0; r < width; ++r)
            a[r] = *reinterpret_cast<const Vec*>(
                x + min(row + half * width + r, rows - 1) * P::samples + lane);
          transpose<P>(a);
#pragma GCC unroll 16
          for (int l = 0; l < width; ++l) *reinterpret_cast<Vec*>(turned[lane + l][half]) = a[l];
        }
      const bool both = row + width < rows;
      in_blocks<accumulators / 2>(depth, [&](auto size, int64_t d) {
        constexpr int N = decltype(size)::value;
        Vec sum[2][N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sum[0][n] = sum[1][n] = Vec{};
        for (int sample = 0; sample < count; ++sample) {
          const Vec first = *reinterpret_cast<const Vec*>(turned[sample][0]);
          const Vec second = *reinterpret_cast<const Vec*>(turned[sample][1]);
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) {
            const Vec right = y[(d + n) * P::samples + sample] - Vec{};
            sum[0][n] += first * right;
            sum[1][n] += second * right;
          }
        }
        Vec* to = reinterpret_cast<Vec*>(sums) + d;
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          to[n] += sum[0][n];
          if (both) to[depth + n] += sum[1][n];
        }
      });
    }
  }

  // The sums to, or onto, a tensor: its rows are numbered by (out-capsule, its dimension), of which
  // there are out_dim; strides of out-capsule, in-capsule, out-dimension and in-dimension.
  void store(const T* sums, int64_t out_dim, const int64_t* stride, bool onto, T* grad) const {
    using Vec = typename P::Vec;
    constexpr int width = P::width;
    int64_t j = 0, e = 0;
    for (int64_t row = 0; row < rows; row += width, sums += width * depth) {
      const int count = int(min(width, rows - row));
      T* to[width];
      for (int r = 0; r < count; ++r) {
        to[r] = grad + j * stride[0] + e * stride[2];
        __builtin_prefetch(to[r] + 4 * stride[0], 1);
        if (++e == out_dim) e = 0, ++j;
      }
      for (int64_t d = 0; d < depth; d += width) {
        const int columns = int(min(width, depth - d));
        Vec a[width];
#pragma GCC unroll 16
        for (int c = 0; c < width; ++c)
          a[c] = c < columns ? reinterpret_cast<const Vec*>(sums)[d + c] : Vec{};
        transpose<P>(a);
        for (int r = 0; r < count; ++r) {
          T* out = to[r] + d * stride[3];
          if (stride[3] == 1 && !onto)
            store_some<P>(out, a[r], columns);
          else
            for (int c = 0; c < columns; ++c, out += stride[3])
              *out = (onto ? *out : T(0)) + a[r][c];
        }
      }
    }
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

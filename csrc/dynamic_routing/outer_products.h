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
  using Vec = typename P::Vec;

  int64_t rows, depth;

  int64_t numbers() const { return ceil_div(rows, P::width) * P::width * depth; }

  // sums += sum over `count` samples of x [rows] y [depth]. x is transposed, so that no sum over
  // lanes remains.
  void add(const T* x, const T* y, int count, T* sums) const {
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

  // Two rows at a time meet this many columns.
  static constexpr int columns = P::width / 2;
  // Over several tiles sums of lanes, which end in one tree of additions, cost less than turning x.
  bool by_lanes(int64_t tiles) const {
    return vector_bytes == 64 && P::vectors * tiles >= 6 && rows % 2 == 0 && columns > 0 &&
           depth % columns == 0;
  }
  // sums [rows, depth] = sum over all tiles, whose x and y lie so far apart.
  void sum_lanes(int64_t tiles, const T* x, int64_t x_tile, const T* y, int64_t y_tile,
                 T* sums) const {
    constexpr int per_row = columns > 0 ? columns : 1, width = P::width;
    for (int64_t row = 0; row < rows; row += 2)
      for (int64_t d = 0; d < depth; d += per_row) {
        Vec sum[2 * per_row];
#pragma GCC unroll 16
        for (int n = 0; n < 2 * per_row; ++n) sum[n] = Vec{};
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const T* left = x + tile * x_tile + row * P::samples;
          const T* right = y + tile * y_tile + d * P::samples;
#pragma GCC unroll 2
          for (int lane = 0; lane < P::samples; lane += width) {
            const Vec first = *reinterpret_cast<const Vec*>(left + lane);
            const Vec second = *reinterpret_cast<const Vec*>(left + P::samples + lane);
#pragma GCC unroll 8
            for (int n = 0; n < per_row; ++n) {
              const Vec column = *reinterpret_cast<const Vec*>(right + n * P::samples + lane);
              sum[n] += first * column;
              sum[per_row + n] += second * column;
            }
          }
        }
        const Vec totals = lane_sums<P>(sum);
        for (int half = 0; half < 2; ++half)
          __builtin_memcpy(sums + (row + half) * depth + d,
                           reinterpret_cast<const T*>(&totals) + half * per_row,
                           per_row * sizeof(T));
      }
  }
  // Those to, or onto, a tensor.
  void store_rows(const T* sums, int64_t out_dim, const int64_t* stride, bool onto, T* grad) const {
    const bool plain = stride[3] == 1 && stride[2] == depth && !onto;
    for (int64_t row = 0; row < rows; row += out_dim, grad += stride[0]) {
      if (plain) {
        __builtin_memcpy(grad, sums + row * depth, out_dim * depth * sizeof(T));
        continue;
      }
      for (int64_t e = 0; e < out_dim; ++e)
        for (int64_t d = 0; d < depth; ++d) {
          T* to = grad + e * stride[2] + d * stride[3];
          *to = (onto ? *to : T(0)) + sums[(row + e) * depth + d];
        }
    }
  }

  // The sums to, or onto, a tensor: its rows are numbered by (out-capsule, its dimension), of which
  // there are out_dim; strides of out-capsule, in-capsule, out-dimension and in-dimension.
  void store(const T* sums, int64_t out_dim, const int64_t* stride, bool onto, T* grad) const {
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

#pragma once

#include "dynamic_routing/lanes.h"

// Products of a matrix of scalars, which are broadcast, and packs.

namespace lamina {
namespace LAMINA_ISA {
namespace {

LAMINA_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
LAMINA_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
LAMINA_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Cache lines that will soon be read, or written.
template <bool WRITTEN, class T>
LAMINA_INLINE void prefetch(const T* p, int64_t numbers) {
  for (int64_t k = 0; k < numbers; k += 64 / int(sizeof(T))) __builtin_prefetch(p + k, WRITTEN, 3);
}

// A matrix of packs; a row, and a column, lies so many packs after the one before.
template <class T>
struct PackMatrix {
  const T* data;
  int64_t row, column;
};

// A matrix of scalars whose columns are numbered by (outer, depth); another such lies `next` on.
struct Matrix {
  int64_t rows, row_stride, outer, outer_stride, depth, depth_stride, next;
};

template <int N>
struct Count {
  static constexpr int value = N;
};

// f(Count<n>, first) for blocks that together make 0..rows-1.
template <int BLOCK, class F>
LAMINA_INLINE void in_blocks(int64_t rows, const F& f) {
  int64_t row = 0;
  for (; row + BLOCK <= rows && !(BLOCK == 3 && row + 4 == rows); row += BLOCK)
    f(Count<BLOCK>{}, row);
  if (BLOCK > 2)
    for (; row + 2 <= rows; row += 2) f(Count<2>{}, row);
  for (; row < rows; ++row) f(Count<1>{}, row);
}

// Rows summed at once where each takes a pack.
template <class P>
constexpr int row_block = accumulators / P::vectors < 8 ? accumulators / P::vectors : 8;

constexpr int pack_rows = vector_bytes == 64 ? 4 : 3;

// emit(row, column, sum over `depth` of a[row, k] b[k, column]), lane by lane.
template <class Q, class T, class Emit>
LAMINA_INLINE void multiply_packs(int64_t rows, int64_t columns, int64_t depth,
                                  const PackMatrix<T>& a, const PackMatrix<T>& b,
                                  const Emit& emit) {
  constexpr int L = Q::samples;
  in_blocks<pack_rows>(rows, [&](auto some_rows, int64_t row) {
    in_blocks<4>(columns, [&](auto some_columns, int64_t column) {
      constexpr int M = decltype(some_rows)::value, N = decltype(some_columns)::value;
      Q sum[M][N];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[m][n] = Q::fill(T(0));
      const T *left = a.data + row * a.row * L, *right = b.data + column * b.column * L;
      for (int64_t k = 0; k < depth; ++k, left += a.column * L, right += b.row * L) {
        Q x[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) x[m] = Q::load(left + m * a.row * L);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const Q y = Q::load(right + n * b.column * L).held();
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) sum[m][n] += x[m] * y;
        }
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) emit(row + m, column + n, sum[m][n]);
    });
  });
}

template <int ROWS, int STRIDE, class P, class T, class Emit>
LAMINA_INLINE void product_rows(const Matrix& m, const T* a, int64_t row, const T* x,
                                const Emit& emit) {
  const int64_t stride = STRIDE > 0 ? STRIDE : m.row_stride;
  P sum[ROWS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) sum[r] = P::fill(T(0));
  a += row * stride;
  for (int64_t o = 0; o < m.outer; ++o, a += m.outer_stride) {
    const T* column = a;
    for (int64_t k = 0; k < m.depth; ++k, column += m.depth_stride, x += P::samples) {
      // A row at a time: all at once they would hold up the loads.
      __builtin_prefetch(column + k % ROWS * stride + m.next);
      const P right = P::load(x);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) sum[r] += column[r * stride] * right;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) emit(row + r, sum[r]);
}

// emit(row, sum over the columns of a[row, column] x[column]); packs x lie one after another. Row
// strides known to the compiler leave the registers to the sums.
template <class P, class T, class Emit>
LAMINA_INLINE void product(const Matrix& m, const T* a, const T* x, const Emit& emit) {
  const auto with_stride = [&](auto stride) {
    in_blocks<row_block<P>>(m.rows, [&](auto size, int64_t row) {
      product_rows<decltype(size)::value, decltype(stride)::value, P>(m, a, row, x, emit);
    });
  };
  if (m.row_stride == 1) return with_stride(Count<1>{});
  if (m.row_stride == 8) return with_stride(Count<8>{});
  if (m.row_stride == 16) return with_stride(Count<16>{});
  with_stride(Count<0>{});
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

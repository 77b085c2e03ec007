#pragma once

#include "common/parallel.h"
#include "gemm/pack.h"

// C[m, n] = A[m, k] * B[k, n] for few rows, nothing packed: packing B would cost as much as the
// sums. Both operands must be contiguous along k. Vectors run along k, and B is read once.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// As many sums at a time as a vector has lanes: one transposition then adds up all of them.
template <class T>
constexpr int dot_columns = lanes<T> < 4 ? lanes<T> : 4;
template <class T>
constexpr int dot_rows = lanes<T> / dot_columns<T>;

// tile[i * tile_columns<T> + j] = sum over k of A's row i times B's column j.
template <class T, int ROWS, class Source>
void dot_kernel(int64_t depth, const Source* a, int64_t a_stride, const Source* const* b, T* tile) {
  constexpr int L = lanes<T>, C = dot_columns<T>;
  Vector<T> sum[L] = {};
  const auto step = [&](int64_t d, auto&& load_at) {
    Vector<T> row[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) row[i] = load_at(a + i * a_stride + d);
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      const Vector<T> column = load_at(b[j] + d);
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) sum[i * C + j] += row[i] * column;
    }
  };
  int64_t d = 0;
  for (; d + L <= depth; d += L) step(d, [](const Source* from) { return load(from); });
  const int rest = static_cast<int>(depth - d);
  if (rest > 0) step(d, [=](const Source* from) { return load(from, rest); });

  transpose(sum);
#pragma GCC unroll 4
  for (int half = L / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < C; ++j) tile[i * tile_columns<T> + j] = sum[0][i * C + j];
}

template <class T, int ROWS, class Source>
void dot_rows_kernel(int rows, int64_t depth, const Source* a, int64_t a_stride,
                     const Source* const* b, T* tile) {
  if (rows >= ROWS)
    dot_kernel<T, ROWS>(depth, a, a_stride, b, tile);
  else if constexpr (ROWS > 1)
    dot_rows_kernel<T, ROWS - 1>(rows, depth, a, a_stride, b, tile);
}

template <class T, class Source>
bool dot_suits(int64_t m, const Matrix<T, Source>& a, const Matrix<T, Source>& b) {
  return m <= blocking.unpacked_rows && a.depth_stride == 1 && b.depth_stride == 1;
}

template <class T, class Source, class Epilogue>
void dot_gemm(int64_t m, int64_t n, int64_t k, const Matrix<T, Source>& a,
              const Matrix<T, Source>& b, const Epilogue& epilogue, const Parallel& parallel) {
  constexpr int C = tile_columns<T>;
  const int64_t panels = (n + C - 1) / C;
  int64_t next = 0;
  const auto work = [&](int) {
    for (int64_t p; (p = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < panels;) {
      const int columns = static_cast<int>(n - p * C < C ? n - p * C : C);
      T tile[blocking.unpacked_rows * C];
      for (int j = 0; j < columns; j += dot_columns<T>) {
        const Source* column[dot_columns<T>];  // past the last column, the last again
        for (int c = 0; c < dot_columns<T>; ++c)
          column[c] = b.data + (p * C + (j + c < columns ? j + c : columns - 1)) * b.stride;
        for (int64_t i = 0; i < m; i += dot_rows<T>)
          dot_rows_kernel<T, dot_rows<T>>(static_cast<int>(m - i), k, a.data + i * a.stride,
                                          a.stride, column, tile + i * C + j);
      }
      epilogue(tile, 0, static_cast<int>(m), p * C, columns);
    }
  };
  // A thread is worth its start from about 256 KB of B on.
  const int64_t share = n * k * static_cast<int64_t>(sizeof(Source)) / (256 << 10);
  const int64_t wanted = share < panels ? share : panels;
  const int threads = static_cast<int>(wanted < parallel.threads ? wanted : parallel.threads);
  if (threads <= 1)
    work(0);
  else
    parallel_for(parallel, threads, work);
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

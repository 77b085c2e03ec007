#pragma once

#include "common/parallel.h"
#include "gemm/pack.h"

// The two products of a backward pass over few rows, nothing packed: with dZ [m, n] at hand,
//   dX [m, k] = dZ W,  W  [n, k] read once, a strip of columns at a time;
//   dW [n, k] = dZᵀ X, dW [n, k] written once.
// Both walk along k, in which X, W and their gradients must be contiguous. Every sum is taken in
// the order of its index, whatever the strips and the threads.

namespace lamina {
namespace LAMINA_ISA {
namespace {

constexpr int64_t strip_bytes = 16 << 10;  // of the rows of a strip, which should stay in the L1

template <class T, class Source>
struct FewRows {
  int64_t m, n, k;
  const T* dz;  // [m, n] dense
  const Source* input;
  int64_t input_stride;
  const Source* weight;
  int64_t weight_stride;
  Source* grad_input;   // [m, k] dense, or null
  Source* grad_weight;  // [n, k] dense, or null
};

// sums[i, strip] += dZ[i, j .. j + ROWS) * W[j .. j + ROWS), for all rows i.
template <class T, int ROWS, class Source>
inline void add_weight_rows(const FewRows<T, Source>& of, int64_t j, int64_t column, int columns,
                            T* sums, int64_t stride) {
  constexpr int L = lanes<T>;
  const Source* const weight = of.weight + j * of.weight_stride + column;
  const auto step = [&](int c, auto&& load_at) {
    Vector<T> row[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Source* const from = weight + r * of.weight_stride + c;
      __builtin_prefetch(from + ROWS * of.weight_stride);
      row[r] = load_at(from);
    }
    const T* factor = of.dz + j;
    T* target = sums + c;
    for (int64_t i = 0; i < of.m; ++i, factor += of.n, target += stride) {
      Vector<T> sum = factor[0] * row[0];
#pragma GCC unroll 8
      for (int r = 1; r < ROWS; ++r) sum += factor[r] * row[r];
      store(target, load(target) + sum);
    }
  };
  int c = 0;
  for (; c + L <= columns; c += L) step(c, [](const Source* from) { return load(from); });
  const int rest = columns - c;
  if (rest > 0) step(c, [=](const Source* from) { return load(from, rest); });
}

// dX[:, column .. column + columns). `sums` holds m rows of `columns`, rounded up to vectors.
template <class T, class Source>
void grad_input_strip(const FewRows<T, Source>& of, int64_t column, int columns, T* sums) {
  constexpr int L = lanes<T>;
  const int64_t stride = (columns + L - 1) / L * L;
  for (int64_t e = 0; e < of.m * stride; e += L) store(sums + e, Vector<T>{});
  int64_t j = 0;
  for (; j + 8 <= of.n; j += 8) add_weight_rows<T, 8>(of, j, column, columns, sums, stride);
  for (; j < of.n; ++j) add_weight_rows<T, 1>(of, j, column, columns, sums, stride);
  for (int64_t i = 0; i < of.m; ++i) {
    Source* const target = of.grad_input + i * of.k + column;
    for (int c = 0; c < columns; c += L) {
      const Vector<T> sum = load(sums + i * stride + c);
      if (columns - c >= L)
        store(target + c, sum);
      else
        store(target + c, sum, columns - c);
    }
  }
}

// ROWS rows of dW from row j on, columns [column, column + columns).
template <class T, int ROWS, class Source>
inline void grad_weight_rows(const FewRows<T, Source>& of, int64_t j, int64_t column,
                             int64_t columns) {
  constexpr int L = lanes<T>, V = 2;
  Source* const target = of.grad_weight + j * of.k + column;
  const Source* const input = of.input + column;
  int64_t c = 0;
  for (; c + V * L <= columns; c += V * L) {
    Vector<T> sum[ROWS][V] = {};
    for (int64_t i = 0; i < of.m; ++i) {
      const T* const factor = of.dz + i * of.n + j;
      const Source* const from = input + i * of.input_stride + c;
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const Vector<T> x = load(from + v * L);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) sum[r][v] += factor[r] * x;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(target + r * of.k + c + v * L, sum[r][v]);
    }
  }
  for (; c < columns; c += L) {
    const int count = columns - c < L ? static_cast<int>(columns - c) : L;
    Vector<T> sum[ROWS] = {};
    for (int64_t i = 0; i < of.m; ++i) {
      const Vector<T> x = load(input + i * of.input_stride + c, count);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) sum[r] += of.dz[i * of.n + j + r] * x;
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) store(target + r * of.k + c, sum[r], count);
  }
}

// dW[first .. first + rows, :], strip by strip.
template <class T, class Source>
void grad_weight_block(const FewRows<T, Source>& of, int64_t first, int64_t rows, int64_t strip) {
  for (int64_t column = 0; column < of.k; column += strip) {
    const int64_t columns = of.k - column < strip ? of.k - column : strip;
    int64_t j = first;
    for (; j + 4 <= first + rows; j += 4) grad_weight_rows<T, 4>(of, j, column, columns);
    for (; j < first + rows; ++j) grad_weight_rows<T, 1>(of, j, column, columns);
  }
}

template <class T, class Source>
void few_rows_backward(const FewRows<T, Source>& of, const Parallel& parallel) {
  constexpr int64_t L = lanes<T>, elements = strip_bytes / static_cast<int64_t>(sizeof(T));
  // A thread is worth its start from about 256 KB of W on.
  const int64_t share = of.n * of.k * static_cast<int64_t>(sizeof(Source)) / (256 << 10) + 1;
  const int64_t threads = share < parallel.threads ? share : parallel.threads;
  const int64_t most = elements / of.m / L * L,
                fair = ((of.k + threads - 1) / threads + L - 1) / L * L;
  const int64_t strip = most < fair ? most : fair, block = 64;
  const int64_t strips = of.grad_input != nullptr ? (of.k + strip - 1) / strip : 0;
  const int64_t blocks = of.grad_weight != nullptr ? (of.n + block - 1) / block : 0;
  int64_t next = 0;
  const auto work = [&](int) {
    for (int64_t item; (item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < strips + blocks;) {
      if (item < strips) {
        T sums[elements];
        const int64_t column = item * strip;
        const int64_t left = of.k - column;
        grad_input_strip(of, column, static_cast<int>(left < strip ? left : strip), sums);
      } else {
        const int64_t first = (item - strips) * block;
        const int64_t left = of.n - first;
        grad_weight_block(of, first, left < block ? left : block, most);
      }
    }
  };
  if (threads <= 1)
    work(0);
  else
    parallel_for(parallel, static_cast<int>(threads), work);
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

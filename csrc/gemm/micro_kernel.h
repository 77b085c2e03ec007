#pragma once

#include "gemm/blocking.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// tile[ROWS][VECTORS vectors] (+)= A panel * B panel. Rows of the tile are tile_columns apart. It
// stays a function of its own, so that tests/check_objects.py can find its loop.
template <class T, int ROWS, int VECTORS>
__attribute__((noinline)) void micro_kernel(int64_t depth, const T* a, const T* b, T* tile,
                                            bool accumulate) {
  Vector<T> sum[ROWS][VECTORS] = {};
  for (int64_t d = 0; d < depth; ++d) {
    Vector<T> column[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) column[j] = load(b + j * lanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sum[i][j] += a[i] * column[j];
    }
    a += tile_rows<T>;
    b += tile_columns<T>;
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) {
      T* target = tile + i * tile_columns<T> + j * lanes<T>;
      if (accumulate) sum[i][j] += load(target);
      store(target, sum[i][j]);
    }
  }
}

template <class T>
using MicroKernel = void (*)(int64_t depth, const T* a, const T* b, T* tile, bool accumulate);

template <class T, int ROWS, int VECTORS>
struct MicroKernelTable {
  static MicroKernel<T> find(int rows) {
    return rows == ROWS ? &micro_kernel<T, ROWS, VECTORS>
                        : MicroKernelTable<T, ROWS - 1, VECTORS>::find(rows);
  }
};
template <class T, int VECTORS>
struct MicroKernelTable<T, 1, VECTORS> {
  static MicroKernel<T> find(int) { return &micro_kernel<T, 1, VECTORS>; }
};

// The micro-kernel for a tile of `rows` x `columns`, both at least 1.
template <class T>
MicroKernel<T> find_micro_kernel(int rows, int columns) {
  return columns <= lanes<T> ? MicroKernelTable<T, tile_rows<T>, 1>::find(rows)
                             : MicroKernelTable<T, tile_rows<T>, tile_vectors<T>>::find(rows);
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

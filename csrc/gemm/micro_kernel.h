#pragma once

#include "gemm/blocking.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Where a tile of sums is kept, its rows `stride` apart.
template <class T>
struct Tile {
  T* data;
  int64_t stride;
};

// Where an epilogue that only stores sums wants those of a tile that are whole: they go there
// instead. Null where it wants to see them.
template <class T, class Epilogue>
inline auto target_tile(const Epilogue& epilogue, int64_t row, int rows, int64_t column,
                        int columns, int)
    -> decltype(epilogue.target_tile(row, rows, column, columns)) {
  return epilogue.target_tile(row, rows, column, columns);
}
template <class T, class Epilogue>
inline Tile<T> target_tile(const Epilogue&, int64_t, int, int64_t, int, long) {
  return {nullptr, 0};
}

template <class T, int ROWS, int VECTORS>
inline __attribute__((always_inline)) void store_tile(Vector<T> (&sum)[ROWS][VECTORS], Tile<T> tile,
                                                      bool accumulate) {
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i, tile.data += tile.stride) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) {
      T* target = tile.data + j * lanes<T>;
      if (accumulate) sum[i][j] += load(target);
      store(target, sum[i][j]);
    }
  }
}

// tile[ROWS][VECTORS vectors] (+)= A panel * B panel; element (i, d) of A at a[i + d * stride]. It
// stays a function of its own, so that tests/check_objects.py can find its loop.
template <class T, int ROWS, int VECTORS>
__attribute__((noinline)) void micro_kernel(int64_t depth, const T* a, int64_t stride, const T* b,
                                            Tile<T> tile, bool accumulate) {
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
    a += stride;
    b += tile_columns<T>;
  }
  store_tile<T>(sum, tile, accumulate);
}

// The same with element (i, d) of A at a[i * stride + d]. Five rows share a pointer, or there would
// not be enough registers; the asm keeps GCC from giving each row its own.
template <class T, int ROWS, int VECTORS>
__attribute__((noinline)) void micro_kernel_by_row(int64_t depth, const T* a, int64_t stride,
                                                   const T* b, Tile<T> tile, bool accumulate) {
  constexpr int together = 5, groups = (ROWS + together - 1) / together;
  const T* group[groups];
#pragma GCC unroll 4
  for (int g = 0; g < groups; ++g) group[g] = a + g * together * stride;
  const int64_t row[together] = {0, stride, 2 * stride, 3 * stride, 4 * stride};
  Vector<T> sum[ROWS][VECTORS] = {};
  for (int64_t d = 0; d < depth; ++d) {
    Vector<T> column[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) column[j] = load(b + j * lanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const T element = group[i / together][row[i % together]];
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sum[i][j] += element * column[j];
    }
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) {
      ++group[g];
      asm("" : "+r"(group[g]));
    }
    b += tile_columns<T>;
  }
  store_tile<T>(sum, tile, accumulate);
}

template <class T>
using MicroKernel = void (*)(int64_t depth, const T* a, int64_t stride, const T* b, Tile<T> tile,
                             bool accumulate);

template <class T, int ROWS, int VECTORS>
struct MicroKernelTable {
  using Smaller = MicroKernelTable<T, ROWS - 1, VECTORS>;
  static MicroKernel<T> find(int rows) {
    return rows == ROWS ? &micro_kernel<T, ROWS, VECTORS> : Smaller::find(rows);
  }
  static MicroKernel<T> find_by_row(int rows) {
    return rows == ROWS ? &micro_kernel_by_row<T, ROWS, VECTORS> : Smaller::find_by_row(rows);
  }
};
template <class T, int VECTORS>
struct MicroKernelTable<T, 1, VECTORS> {
  static MicroKernel<T> find(int) { return &micro_kernel<T, 1, VECTORS>; }
  static MicroKernel<T> find_by_row(int) { return &micro_kernel_by_row<T, 1, VECTORS>; }
};

// The micro-kernels for a tile of `rows` x `columns`, both at least 1.
template <class T>
MicroKernel<T> find_micro_kernel(int rows, int columns) {
  return columns <= lanes<T> ? MicroKernelTable<T, tile_rows<T>, 1>::find(rows)
                             : MicroKernelTable<T, tile_rows<T>, tile_vectors<T>>::find(rows);
}
template <class T>
MicroKernel<T> find_micro_kernel_by_row(int rows, int columns) {
  return columns <= lanes<T>
             ? MicroKernelTable<T, tile_rows<T>, 1>::find_by_row(rows)
             : MicroKernelTable<T, tile_rows<T>, tile_vectors<T>>::find_by_row(rows);
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

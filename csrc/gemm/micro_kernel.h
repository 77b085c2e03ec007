#pragma once

#include "gemm/blocking.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Where an epilogue wants the finished sums of a panel of columns to be put, instead of being shown
// them: any type with a pointer `data`, null where it wants to see them, and a function that takes
// the tile of some rows out of the registers. Only whole panels go there. Epilogues without
// target_panel see all sums.
template <class T>
struct NoTarget {
  const T* data;
  template <int ROWS>
  void put(int64_t, Vector<T> (&)[ROWS][tile_vectors<T>]) const {}
};
template <class T, class Epilogue>
inline auto target_panel(const Epilogue& epilogue, int64_t column, int columns, int)
    -> decltype(epilogue.target_panel(column, columns)) {
  return epilogue.target_panel(column, columns);
}
template <class T, class Epilogue>
inline NoTarget<T> target_panel(const Epilogue&, int64_t, int, long) {
  return {nullptr};
}

// What becomes of a micro-kernel's sums: they are added to those of `tile`, if there are any, and
// stored there, or go to the target, unless that is null.
template <class T, class Target>
struct Output {
  T* tile;
  bool accumulate;
  const Target* target;
  int64_t row;

  template <int ROWS, int VECTORS>
  inline __attribute__((always_inline)) void store(Vector<T> (&sum)[ROWS][VECTORS]) const {
    if (accumulate) {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) sum[i][j] += load(at(i, j));
      }
    }
    if constexpr (VECTORS == tile_vectors<T>) {
      if (target != nullptr) return target->put(row, sum);
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) LAMINA_ISA::store(at(i, j), sum[i][j]);
    }
  }

 private:
  T* at(int i, int j) const { return tile + i * tile_columns<T> + j * lanes<T>; }
};

// ROWS x VECTORS vectors of A panel * B panel; element (i, d) of A at a[i + d * stride] and
// (d, j) of B at b[d * b_stride + j]. It stays a function of its own, so that
// tests/check_objects.py can find its loop.
template <class T, int ROWS, int VECTORS, class Target>
__attribute__((noinline)) void micro_kernel(int64_t depth, const T* a, int64_t stride, const T* b,
                                            int64_t b_stride, const Output<T, Target>& output) {
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
    b += b_stride;
  }
  output.store(sum);
}

// The same with element (i, d) of A at a[i * stride + d]. Five rows share a pointer, or there would
// not be enough registers; the asm keeps GCC from giving each row its own.
template <class T, int ROWS, int VECTORS, class Target>
__attribute__((noinline)) void micro_kernel_by_row(int64_t depth, const T* a, int64_t stride,
                                                   const T* b, int64_t b_stride,
                                                   const Output<T, Target>& output) {
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
    b += b_stride;
  }
  output.store(sum);
}

template <class T, class Target>
using MicroKernel = void (*)(int64_t depth, const T* a, int64_t stride, const T* b,
                             int64_t b_stride, const Output<T, Target>& output);

// Those of VECTORS vectors, by the number of rows less 1.
template <class T, int VECTORS, class Target, int... ROWS>
struct MicroKernels : MicroKernels<T, VECTORS, Target, tile_rows<T> - sizeof...(ROWS), ROWS...> {};
template <class T, int VECTORS, class Target, int... ROWS>
struct MicroKernels<T, VECTORS, Target, 1, ROWS...> {
  static constexpr MicroKernel<T, Target> plain[] = {&micro_kernel<T, 1, VECTORS, Target>,
                                                     &micro_kernel<T, ROWS, VECTORS, Target>...};
  static constexpr MicroKernel<T, Target> by_row[] = {
      &micro_kernel_by_row<T, 1, VECTORS, Target>,
      &micro_kernel_by_row<T, ROWS, VECTORS, Target>...};
};

// The micro-kernels for a tile of `rows` x `columns`, both at least 1.
template <class T, class Target>
MicroKernel<T, Target> find_micro_kernel(int rows, int columns) {
  return columns <= lanes<T> ? MicroKernels<T, 1, Target>::plain[rows - 1]
                             : MicroKernels<T, tile_vectors<T>, Target>::plain[rows - 1];
}
template <class T, class Target>
MicroKernel<T, Target> find_micro_kernel_by_row(int rows, int columns) {
  return columns <= lanes<T> ? MicroKernels<T, 1, Target>::by_row[rows - 1]
                             : MicroKernels<T, tile_vectors<T>, Target>::by_row[rows - 1];
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

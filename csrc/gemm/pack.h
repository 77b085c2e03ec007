#pragma once

#include "gemm/blocking.h"

// Packing writes panels: panel[d * WIDTH + i] = operand(first + i, depth + d). An operand of the
// GEMM is any type with
//   template <int WIDTH> void pack(T* panel, int64_t first, int count, int64_t depth, int depths)
//   const template <int WIDTH> void packed(const T* panel, <the same>) const
// pack writes the `depths` <= blocking.depth vectors of a block, depth being a multiple of
// blocking.depth: elements i < count, and where WIDTH is a multiple of lanes<T> (always for B)
// zeros for i >= count. Otherwise what lies past count is not read, and packing may write whole
// vectors that spill over into the next depth's elements or, at the end, past the block. packed
// sees every block of the operand once, just after it was packed, from any thread.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// A loader gives vectors along the direction in which memory is (best) contiguous:
//   Vector<T> operator()(int64_t row, int64_t column, int count) const
// with lanes `count` and up 0.

// The panel runs along the loader's rows: blocks are transposed in registers. The highest rows go
// first, since a WIDTH that is not a multiple of L lets them spill over the lowest of the next
// depth.
template <class T, int WIDTH, class Loader>
void pack_transposed(const Loader& loader, T* panel, int64_t first, int count, int64_t depth,
                     int depths) {
  constexpr int L = lanes<T>;
#pragma GCC unroll 4
  for (int base = (WIDTH - 1) / L * L; base >= 0; base -= L) {
    const int rows_max = WIDTH - base < L ? WIDTH - base : L;
    const int rows = count - base < rows_max ? count - base : rows_max;
    for (int d = 0; d < depths; d += L) {
      const int valid = depths - d < L ? depths - d : L;
      Vector<T> block[L] = {};
      T* target = panel + static_cast<int64_t>(d) * WIDTH + base;
      if (rows == rows_max && valid == L) {
#pragma GCC unroll 16
        for (int r = 0; r < rows_max; ++r) block[r] = loader(first + base + r, depth + d, L);
        transpose(block);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) store(target + l * WIDTH, block[l]);
      } else {
        for (int r = 0; r < rows; ++r) block[r] = loader(first + base + r, depth + d, valid);
        transpose(block);
        for (int l = 0; l < valid; ++l) store(target + l * WIDTH, block[l]);
      }
    }
  }
}

// The panel runs along the loader's columns, of which there are `extent`: rows are copied.
template <class T, int WIDTH, class Loader>
void pack_rows(const Loader& loader, T* panel, int64_t first, int count, int64_t depth, int depths,
               int64_t extent) {
  constexpr int L = lanes<T>;
  const int64_t readable = WIDTH % L == 0 ? count : extent - first;
  for (int d = 0; d < depths; ++d) {
#pragma GCC unroll 4
    for (int base = 0; base < WIDTH; base += L) {
      const int64_t valid = readable - base;
      store(panel + base, valid >= L  ? loader(depth + d, first + base, L)
                          : valid > 0 ? loader(depth + d, first + base, static_cast<int>(valid))
                                      : Vector<T>{});
    }
    panel += WIDTH;
  }
}

// A strided matrix of any element type.
template <class T, class Source>
struct MatrixLoader {
  const Source* data;
  int64_t row_stride, column_stride;

  Vector<T> operator()(int64_t row, int64_t column, int count) const {
    const Source* source = data + row * row_stride + column * column_stride;
    if (column_stride != 1) return gather(source, column_stride, count);
    return count == lanes<T> ? load(source) : load(source, count);
  }
};

// operand(i, d) = data[i * stride + d * depth_stride], i < extent.
template <class T, class Source>
struct Matrix {
  const Source* data;
  int64_t stride, depth_stride, extent;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if (stride == 1) {
      const MatrixLoader<T, Source> loader{data, depth_stride, 1};
      pack_rows<T, WIDTH>(loader, panel, first, count, depth, depths, extent);
    } else {
      const MatrixLoader<T, Source> loader{data, stride, depth_stride};
      pack_transposed<T, WIDTH>(loader, panel, first, count, depth, depths);
    }
  }
  template <int WIDTH>
  void packed(const T*, int64_t, int, int64_t, int) const {}
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

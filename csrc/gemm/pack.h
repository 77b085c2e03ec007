#pragma once

#include "gemm/blocking.h"

// Packing writes panels: panel[d * WIDTH + i] = operand(first + i, depth + d). An operand of the
// GEMM is any type with
//   template <int WIDTH> void pack(T* panel, int64_t first, int count, int64_t depth, int depths)
//   const template <int WIDTH> void packed(const T* panel, <the same>) const
// pack writes the `depths` <= pass_depth vectors of a block, depth being a multiple of the GEMM's
// pass_depth: elements i < count, and where WIDTH is a multiple of lanes<T> (always for B) zeros
// for i >= count. Otherwise what lies past count is not read, and packing may write whole vectors
// that spill over into the next depth's elements or, at the end, past the block. packed sees every
// block of the operand once, just after it was packed, from any thread.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// A block that can be read as it lies: element (i, d) at data[i * row_stride + d * depth_stride],
// one of which is 1, for B the first. An operand that has such blocks offers
//   InPlace<T> in_place(int64_t first, int count, int64_t depth, int depths) const
// where `data` is null for those that must be packed; the others are neither packed nor `packed`.
// Of A all are asked for, of B those of whole panels that one work item uses.
template <class T>
struct InPlace {
  const T* data;
  int64_t row_stride, depth_stride;
};
template <class T, class Operand>
inline auto in_place(const Operand& operand, int64_t first, int count, int64_t depth, int depths,
                     int) -> decltype(operand.in_place(first, count, depth, depths)) {
  return operand.in_place(first, count, depth, depths);
}
template <class T, class Operand>
inline InPlace<T> in_place(const Operand&, int64_t, int, int64_t, int, long) {
  return {nullptr, 0, 0};
}

// A loader gives vectors along the direction in which memory is (best) contiguous:
//   Vector<T> operator()(int64_t row, int64_t column, int count) const
// with lanes `count` and up 0.

// One block of L columns and `height` <= L rows, transposed in registers. Rows from `rows` on
// repeat the last one.
template <class T, int WIDTH, class Loader>
inline void pack_whole_block(const Loader& loader, T* target, int64_t row, int rows, int64_t column,
                             int height) {
  constexpr int L = lanes<T>;
  Vector<T> block[L];
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r)
    block[r] = r < height ? loader(row + (r < rows ? r : rows - 1), column, L) : Vector<T>{};
  transpose(block);
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) store(target + l * WIDTH, block[l]);
}
template <class T, int WIDTH, class Loader>
__attribute__((noinline)) void pack_partial_block(const Loader& loader, T* target, int64_t row,
                                                  int rows, int64_t column, int columns) {
  Vector<T> block[lanes<T>] = {};
  for (int r = 0; r < rows; ++r) block[r] = loader(row + r, column, columns);
  transpose(block);
  for (int l = 0; l < columns; ++l) store(target + l * WIDTH, block[l]);
}

// The panel runs along the loader's rows. The highest rows go first, since a WIDTH that is not a
// multiple of L lets them spill over the lowest of the next depth.
template <class T, int WIDTH, class Loader>
void pack_transposed(const Loader& loader, T* panel, int64_t first, int count, int64_t depth,
                     int depths) {
  constexpr int L = lanes<T>;
#pragma GCC unroll 4
  for (int base = (WIDTH - 1) / L * L; base >= 0; base -= L) {
    const int height = WIDTH - base < L ? WIDTH - base : L;
    const int rows = count - base < height ? count - base : height;
    int d = 0;
    if (WIDTH % L == 0 ? rows == L : rows > 0)
      for (; d + L <= depths; d += L)
        pack_whole_block<T, WIDTH>(loader, panel + d * WIDTH + base, first + base, rows, depth + d,
                                   height);
    for (; d < depths; d += L)
      pack_partial_block<T, WIDTH>(loader, panel + d * WIDTH + base, first + base, rows, depth + d,
                                   depths - d < L ? depths - d : L);
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

// A matrix of any element type. Where CONTIGUOUS, its columns are; it then asks the caches for what
// lies `ahead` elements further.
template <class T, class Source, bool CONTIGUOUS>
struct MatrixLoader {
  const Source* data;
  int64_t row_stride, column_stride, ahead;

  Vector<T> operator()(int64_t row, int64_t column, int count) const {
    const Source* source = data + row * row_stride;
    if constexpr (CONTIGUOUS) {
      __builtin_prefetch(source + column + ahead);
      return count == lanes<T> ? load(source + column) : load(source + column, count);
    } else {
      return gather(source + column * column_stride, column_stride, count);
    }
  }
};

// How far packing looks ahead: along a row in bytes, across rows in rows.
constexpr int64_t ahead_bytes = 256;
constexpr int64_t ahead_rows = 8;

// operand(i, d) = data[i * stride + d * depth_stride], i < extent.
template <class T, class Source>
struct Matrix {
  const Source* data;
  int64_t stride, depth_stride, extent;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if (stride == 1) {
      const MatrixLoader<T, Source, true> rows{data, depth_stride, 1, ahead_rows * depth_stride};
      pack_rows<T, WIDTH>(rows, panel, first, count, depth, depths, extent);
    } else if (depth_stride == 1) {
      const MatrixLoader<T, Source, true> rows{data, stride, 1, ahead_bytes / sizeof(Source)};
      pack_transposed<T, WIDTH>(rows, panel, first, count, depth, depths);
    } else {
      const MatrixLoader<T, Source, false> rows{data, stride, depth_stride, 0};
      pack_transposed<T, WIDTH>(rows, panel, first, count, depth, depths);
    }
  }
  template <int WIDTH>
  void packed(const T*, int64_t, int, int64_t, int) const {}
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

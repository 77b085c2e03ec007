#pragma once

#include "common/parallel.h"
#include "common/vec_activation.h"
#include "gemm/pack.h"

// dZ = dY * act'(saved), made while dY is packed.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// `count` bits (at most 16) from bit `first` on; no byte without one of them is read.
inline uint32_t read_bits(const uint8_t* bytes, int64_t first, int count) {
  const uint8_t* const from = bytes + first / 8;
  const int shift = static_cast<int>(first % 8);
  uint32_t bits = from[0];
  if (shift + count > 8) bits |= static_cast<uint32_t>(from[1]) << 8;
  if (shift + count > 16) bits |= static_cast<uint32_t>(from[2]) << 16;
  return (bits >> shift) & ((1u << count) - 1);
}

// dY [rows, columns] with what the forward saved beside it: a mask of `mask_stride` bytes a row, or
// values of the same type as dY in dense rows.
template <class Source>
struct SavedGradient {
  const Source* gradient;
  int64_t row_stride, column_stride;
  const void* saved;
  int64_t saved_stride;  // in bytes for a mask, else in elements
  Activation activation;
  Accumulator<Source> parameter;
};

template <class T, class Source, Activation F, bool CONTIGUOUS>
struct DerivativeLoader {
  const SavedGradient<Source>& from;
  int64_t ahead;  // as in MatrixLoader

  // The packers' inner loops call it once a vector, which GCC takes for too often to inline it.
  __attribute__((always_inline)) Vector<T> operator()(int64_t row, int64_t column,
                                                      int count) const {
    const MatrixLoader<T, Source, CONTIGUOUS> gradients{from.gradient, from.row_stride,
                                                        from.column_stride, ahead};
    const Vector<T> gradient = gradients(row, column, count);
    if constexpr (F == Activation::none) {
      return gradient;
    } else if constexpr (saves_mask(F)) {
      const uint8_t* mask = static_cast<const uint8_t*>(from.saved) + row * from.saved_stride;
      const Mask<T> kept = bits_mask(read_bits(mask, column, count), T{});
      if constexpr (F == Activation::leaky_relu) return kept ? gradient : gradient * from.parameter;
      return kept ? gradient : Vector<T>{};
    } else {
      const MatrixLoader<T, Source, true> values{static_cast<const Source*>(from.saved),
                                                 from.saved_stride, 1, ahead};
      return gradient * derivative<F, T>(values(row, column, count));
    }
  }
};

// Calls body(loader) with the loader for the activation and the strides.
template <class T, class Source, class Body>
inline void with_derivative_loader(const SavedGradient<Source>& from, int64_t ahead,
                                   const Body& body) {
  with_activation(from.activation, [&](auto f) {
    if (from.column_stride == 1)
      body(DerivativeLoader<T, Source, decltype(f)::value, true>{from, ahead});
    else
      body(DerivativeLoader<T, Source, decltype(f)::value, false>{from, ahead});
  });
}

// sums[i] = the sum of panel[d * WIDTH + i] over d < depths.
template <class T, int WIDTH>
inline void sum_over_depth(const T* panel, int count, int depths, T* sums) {
#pragma GCC unroll 4
  for (int base = 0; base < WIDTH; base += lanes<T>) {
    if (base >= count) break;
    // Eight running sums: short chains of additions, which is more exact and faster.
    Vector<T> sum[8] = {};
    int d = 0;
    for (; d + 8 <= depths; d += 8)
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) sum[i] += load(panel + (d + i) * WIDTH + base);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      if (d + i < depths) sum[i] += load(panel + (d + i) * WIDTH + base);
    const Vector<T> total =
        ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    store(sums + base, total, count - base < lanes<T> ? count - base : lanes<T>);
  }
}

// dZ[rows, columns] as an operand: panels along the rows, depth along the columns.
template <class T, class Source>
struct DerivativeByRow {
  SavedGradient<Source> from;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    with_derivative_loader<T>(from, ahead_bytes / sizeof(Source), [&](const auto& loader) {
      pack_transposed<T, WIDTH>(loader, panel, first, count, depth, depths);
    });
  }
  template <int WIDTH>
  void packed(const T*, int64_t, int, int64_t, int) const {}
};

// dZ transposed: panels along the columns, depth along the rows. With partial_sums, an array
// [ceil(rows / blocking.depth), columns], each packed block leaves its sums over the depth there.
template <class T, class Source>
struct DerivativeByColumn {
  SavedGradient<Source> from;
  int64_t columns;
  T* partial_sums;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    with_derivative_loader<T>(from, ahead_rows * from.row_stride, [&](const auto& loader) {
      pack_rows<T, WIDTH>(loader, panel, first, count, depth, depths, columns);
    });
  }

  template <int WIDTH>
  void packed(const T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if (partial_sums == nullptr) return;
    sum_over_depth<T, WIDTH>(panel, count, depths,
                             partial_sums + depth / blocking.depth * columns + first);
  }
};

// The partial sums of an operand dZ [rows, columns], depth along the rows, where no GEMM packs it.
template <class T, class Operand>
void sum_packed(const Operand& dz, int64_t columns, int64_t rows, const Parallel& parallel) {
  constexpr int C = tile_columns<T>;
  parallel_for(parallel, static_cast<int>((columns + C - 1) / C), [&](int task) {
    const int64_t first = static_cast<int64_t>(task) * C;
    const int count = static_cast<int>(columns - first < C ? columns - first : C);
    T panel[blocking.depth * C];
    for (int64_t depth = 0; depth < rows; depth += blocking.depth) {
      const int64_t left = rows - depth;
      const int depths = static_cast<int>(left < blocking.depth ? left : blocking.depth);
      dz.template pack<C>(panel, first, count, depth, depths);
      dz.template packed<C>(panel, first, count, depth, depths);
    }
  });
}

// target[column] = the sum of the blocks' partial sums.
template <class T, class Target>
void add_partial_sums(const T* partial_sums, int64_t blocks, int64_t columns, Target* target) {
  for (int64_t column = 0; column < columns; column += lanes<T>) {
    const int count = columns - column < lanes<T> ? static_cast<int>(columns - column) : lanes<T>;
    Vector<T> sum{};
    for (int64_t block = 0; block < blocks; ++block)
      sum += load(partial_sums + block * columns + column, count);
    store(target + column, sum, count);
  }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "common/vec_activation.h"
#include "gemm/blocking.h"
#include "gemm/prefetch.h"

// What is done with finished tiles. Ops with another layout of C write their own.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Calls body(vector, column, count) for the vectors of one row of a tile; count <= lanes<T> lanes
// hold.
template <class T, class Body>
inline void each_vector(const T* tile_row, int columns, const Body& body) {
#pragma GCC unroll 4
  for (int column = 0; column < tile_columns<T>; column += lanes<T>) {
    const int count = columns - column;
    if (count >= lanes<T>)
      body(load(tile_row + column), column, lanes<T>);
    else if (count > 0)
      body(load(tile_row + column), column, count);
  }
}

template <class T, class Target>
inline void store_lanes(Target* target, Vector<T> value, int count) {
  if (count == lanes<T>)
    store(target, value);
  else
    store(target, value, count);
}

// Fetches, to be written, the lines under a tile of a matrix with dense rows.
template <class T, class Target>
inline void prefetch_rows(Target* target, int64_t row_stride, int64_t row, int rows,
                          int64_t column) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(Target));
  for (int i = 0; i < rows; ++i) {
    Target* const first = target + (row + i) * row_stride + column;
#pragma GCC unroll 4
    for (int64_t j = 0; j < tile_columns<T>; j += line) prefetch_to_l1(first + j);
  }
}

// C[i, j] = sum, as Target, in dense rows.
template <class T, class Target>
struct StoreRows {
  Target* target;
  int64_t row_stride;

  void prefetch(int64_t row, int rows, int64_t column) const {
    prefetch_rows<T>(target, row_stride, row, rows, column);
  }

  void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const {
    for (int i = 0; i < rows; ++i, tile += tile_columns<T>) {
      Target* const target_row = target + (row + i) * row_stride + column;
      each_vector(tile, columns, [&](Vector<T> sum, int j, int count) {
        store_lanes<T>(target_row + j, sum, count);
      });
    }
  }
};

// C[i, j] = sum, in dense columns.
template <class T>
struct StoreColumns {
  T* target;
  int64_t column_stride;

  void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const {
    constexpr int L = lanes<T>;
    for (int i = 0; i < rows; i += L) {
      for (int j = 0; j < columns; j += L) {
        Vector<T> block[L];
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r)
          block[r] = i + r < rows ? load(tile + (i + r) * tile_columns<T> + j) : Vector<T>{};
        transpose(block);
        for (int l = 0; l < L && j + l < columns; ++l)
          store_lanes<T>(target + (column + j + l) * column_stride + row + i, block[l],
                         rows - i < L ? rows - i : L);
      }
    }
  }
};

// output = activation(sum + bias), with what the backward needs: one bit an element where the
// derivative is 1, or z itself.
template <class T, class Target>
struct BiasActivation {
  Target* output;
  int64_t row_stride;
  const Target* bias;  // or null
  Activation activation;
  T parameter;
  uint8_t* mask;  // [rows, mask_stride] or null
  int64_t mask_stride;
  Target* preactivation;  // laid out as output, or null

  void prefetch(int64_t row, int rows, int64_t column) const {
    prefetch_rows<T>(output, row_stride, row, rows, column);
  }

  void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const {
    with_activation(activation, [&](auto f) {
      for (int i = 0; i < rows; ++i)
        store_row<decltype(f)::value>(tile + i * tile_columns<T>, row + i, column, columns);
    });
  }

 private:
  template <Activation F>
  void store_row(const T* tile_row, int64_t row, int64_t column, int columns) const {
    const int64_t offset = row * row_stride + column;
    uint32_t bits = 0;
    each_vector(tile_row, columns, [&](Vector<T> z, int j, int count) {
      if (bias != nullptr)
        z += count == lanes<T> ? load(bias + column + j) : load(bias + column + j, count);
      if constexpr (saves_mask(F)) {
        // Where they are NaN, torch passes the gradient of relu and threshold on, leaky_relu's not.
        const T threshold = F == Activation::threshold ? parameter : 0;
        const auto kept =
            F == Activation::leaky_relu ? (Mask<T>)(z > 0) : ~(Mask<T>)(z <= threshold);
        bits |= mask_bits(kept) << j;
      }
      if constexpr (saves_preactivation(F)) {
        if (preactivation != nullptr) store_lanes<T>(preactivation + offset + j, z, count);
      }
      store_lanes<T>(output + offset + j, activate<F>(z, parameter), count);
    });
    if constexpr (saves_mask(F)) {
      if (mask == nullptr) return;
      if (columns < 32) bits &= (1u << columns) - 1;
      uint8_t* const target = mask + row * mask_stride + column / 8;
      for (int byte = 0; byte * 8 < columns; ++byte)
        target[byte] = static_cast<uint8_t>(bits >> (8 * byte));
    }
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

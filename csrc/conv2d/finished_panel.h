#pragma once

#include "conv2d/activation_kind.h"
#include "gemm/blocking.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// What becomes of the finished sums of a product: activation(sum + bias + residual), for
// activations that are piecewise linear, and the mask's bits.
template <class T>
struct Finishing {
  const T* bias;  // or null
  bool bias_by_column;
  const T* residual;  // or null; lies as the output does
  bool activates;
  Piecewise<T> piecewise;
  uint8_t* mask;  // or null
  int64_t mask_stride;
};

// Where the micro-kernel itself finishes the tiles of a panel of columns, out of its registers
// (micro_kernel.h). Each step goes through the whole tile, so that nothing is decided vector by
// vector.
template <class T>
struct FinishedPanel {
  static constexpr int V = tile_vectors<T>, L = lanes<T>;
  T* data;                 // the output
  int64_t stride, offset;  // of its rows; of the panel in row 0
  int64_t column;
  const Finishing<T>* finishing;

  template <int ROWS>
  inline __attribute__((always_inline)) void put(int64_t row, Vector<T> (&sum)[ROWS][V]) const {
    const int64_t first = offset + row * stride;
    finish(*finishing, row, first, sum);
    each_row<ROWS>(data + first, stride, [&](T* target, int i) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) store(target + j * L, sum[i][j]);
    });
  }

 private:
  // Calls body(pointer, i) for pointers `step` apart. The asm keeps GCC from computing all of them
  // ahead, for which there are not enough registers.
  template <int ROWS, class P, class Body>
  static inline __attribute__((always_inline)) void each_row(P* pointer, int64_t step,
                                                             const Body& body) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i, pointer += step) {
      asm("" : "+r"(pointer));
      body(pointer, i);
    }
  }

  template <int ROWS>
  inline __attribute__((always_inline)) void finish(const Finishing<T>& with, int64_t row,
                                                    int64_t first,
                                                    Vector<T> (&sum)[ROWS][V]) const {
    if (with.bias != nullptr && with.bias_by_column) {
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) {
        const Vector<T> bias = load(with.bias + column + j * L);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) sum[i][j] += bias;
      }
    } else if (with.bias != nullptr) {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        const T bias = with.bias[row + i];
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) sum[i][j] += bias;
      }
    }
    if (with.residual != nullptr)
      each_row<ROWS>(with.residual + first, stride,
                     [&](const T* residual, int i) __attribute__((always_inline)) {
#pragma GCC unroll 4
                       for (int j = 0; j < V; ++j) sum[i][j] += load(residual + j * L);
                     });
    if (!with.activates) return;
    const Piecewise<T> piecewise = with.piecewise;
    if (with.mask != nullptr)
      each_row<ROWS>(with.mask + row * with.mask_stride + column / 8, with.mask_stride,
                     [&](uint8_t* mask, int i) __attribute__((always_inline)) {
                       uint32_t bits = 0;
#pragma GCC unroll 4
                       for (int j = 0; j < V; ++j)
                         bits |= (piecewise.kept(sum[i][j]) & ((1u << L) - 1)) << j * L;
                       __builtin_memcpy(mask, &bits, V * L / 8);
                     });
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) sum[i][j] = piecewise.activate(sum[i][j]);
    }
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

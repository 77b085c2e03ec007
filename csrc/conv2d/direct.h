#pragma once

#include "conv2d/stage.h"
#include "gemm/gemm.h"

// Implicit im2col on staged blocks: the rows of the column matrix are pixels of the block, read
// where they are, one shift for each tap of the kernel.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Packed weights hold this many target channels side by side, a "lane set".
template <class T>
constexpr int set_lanes = tile_columns<T>;

// What a micro-kernel sums over: `depth` channels in blocks, and in each the taps, as offsets of
// staged elements.
struct Sum {
  int64_t depth, block;
  const int64_t* taps;
  int64_t count;
};

template <class T, int ROWS, int VECTORS>
inline void flush(const Vector<T> (&sums)[ROWS][VECTORS], T* z, int64_t z_row, int64_t z_block,
                  bool add) {
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      T* const target = z + v * z_block + i * z_row;
      store(target, add ? load(target) + sums[i][v] : sums[i][v]);
    }
  }
}

// Sums stay in registers for this many terms and are then added to z: sums of sums have smaller
// rounding errors than one long sum.
constexpr int64_t sum_terms = 128;

// z[v][row][lane] = sum of x[row, depth] * w[depth, v, lane], for ROWS pixels side by side.
template <class T, int ROWS, int VECTORS>
__attribute__((noinline)) void multiply_rows(const Sum& sum, const T* x, const T* w, T* z,
                                             int64_t z_row, int64_t z_block) {
  constexpr int L = lanes<T>;
  Vector<T> z_rows[ROWS][VECTORS] = {};
  int64_t terms = 0;
  bool add = false;
  for (int64_t first = 0; first < sum.depth; first += L, x += sum.block) {
    const int64_t channels = min64(L, sum.depth - first);
    for (int64_t t = 0; t < sum.count; ++t) {
      const T* a = x + sum.taps[t];
      for (int64_t c = 0; c < channels; ++c, ++a, w += set_lanes<T>) {
        Vector<T> column[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) column[v] = load(w + v * L);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; ++v) z_rows[i][v] += a[i * L] * column[v];
        }
      }
      terms += channels;
      if (terms < sum_terms) continue;
      flush<T, ROWS, VECTORS>(z_rows, z, z_row, z_block, add);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) z_rows[i][v] = Vector<T>{};
      }
      terms = 0;
      add = true;
    }
  }
  if (terms > 0 || !add) flush<T, ROWS, VECTORS>(z_rows, z, z_row, z_block, add);
}

template <class T>
using MultiplyRows = void (*)(const Sum&, const T*, const T*, T*, int64_t, int64_t);

template <class T, int ROWS, int VECTORS>
struct MultiplyTable {
  static MultiplyRows<T> find(int rows) {
    if constexpr (ROWS == 1)
      return &multiply_rows<T, 1, VECTORS>;
    else
      return rows == ROWS ? &multiply_rows<T, ROWS, VECTORS>
                          : MultiplyTable<T, ROWS - 1, VECTORS>::find(rows);
  }
};

// The same for any number of pixels side by side and one lane set, of which `vectors` are wanted.
template <class T>
void multiply(const Sum& sum, const T* x, int64_t pixels, const T* w, int vectors, T* z,
              int64_t z_row, int64_t z_block) {
  const RowPanels rows(pixels, tile_rows<T>);
  for (int64_t i = 0; i < rows.panels; ++i) {
    const int count = rows.count(i);
    const MultiplyRows<T> run = vectors == 1
                                    ? MultiplyTable<T, tile_rows<T>, 1>::find(count)
                                    : MultiplyTable<T, tile_rows<T>, tile_vectors<T>>::find(count);
    run(sum, x + rows.first(i) * lanes<T>, w, z + rows.first(i) * z_row, z_row, z_block);
  }
}

// Weights [targets, depth, taps] of one group as the micro-kernels read them: lane set by lane set,
// in it phase by phase, in it blocks of depth, taps, depth; `set_lanes` targets side by side.
template <class T>
struct PackedWeights {
  T* data;
  int64_t depth, taps;
  const int64_t* phase_first;  // [phases of both axes]: taps in the phases before
  const int64_t* phase_taps;   // and in this one
  const int64_t* tap_phase;    // [taps]: the phase of each tap
  const int64_t* tap_index;    // and its place there

  int64_t set() const { return depth * taps * set_lanes<T>; }
  T* phase(int64_t set_index, int64_t phase) const {
    return data + set_index * set() + phase_first[phase] * depth * set_lanes<T>;
  }
  T* at(int64_t set_index, int64_t d, int64_t tap) const {
    constexpr int L = lanes<T>;
    const int64_t first = d / L * L, channels = min64(L, depth - first), p = tap_phase[tap];
    return phase(set_index, p) +
           (first * phase_taps[p] + tap_index[tap] * channels + d % L) * set_lanes<T>;
  }
};

// Weights in memory: element (target, depth, tap) = data[target * target_stride + depth *
// depth_stride + tap].
template <class S>
struct Weights {
  const S* data;
  int64_t targets, depth, taps, target_stride, depth_stride;
};

// Calls put(depth, tap, vector) with the lanes of vector `first / lanes` of targets.
template <class T, class S, class Put>
void each_weight_vector(const Weights<S>& weights, int64_t first, const Put& put) {
  constexpr int L = lanes<T>;
  const int count = static_cast<int>(min64(L, weights.targets - first));
  // Where depth and taps are one run of memory, squares need not stop at the end of the taps.
  const bool one_run = weights.depth_stride == weights.taps;
  const int64_t runs = one_run ? 1 : weights.depth,
                length = one_run ? weights.depth * weights.taps : weights.taps;
  for (int64_t run = 0; run < runs; ++run) {
    const S* const source =
        weights.data + first * weights.target_stride + run * weights.depth_stride;
    for (int64_t q = 0; q < length; q += L) {
      const int valid = static_cast<int>(min64(L, length - q));
      Vector<T> square[L] = {};
      if (count == L && valid == L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = load(source + i * weights.target_stride + q);
      } else {
        for (int i = 0; i < count; ++i)
          square[i] = load(source + i * weights.target_stride + q, valid);
      }
      transpose(square);
      int64_t d = one_run ? q / weights.taps : run, tap = one_run ? q % weights.taps : q;
      for (int i = 0; i < valid; ++i) {
        put(d, tap, square[i]);
        if (++tap == weights.taps) tap = 0, ++d;
      }
    }
  }
}

template <class T, class S>
void pack_set(const Weights<S>& weights, int64_t set, const PackedWeights<T>& packed) {
  for (int v = 0; v < tile_vectors<T>; ++v) {
    const int64_t first = set * set_lanes<T> + v * lanes<T>;
    if (first >= weights.targets) continue;
    each_weight_vector<T>(weights, first, [&](int64_t d, int64_t tap, Vector<T> value) {
      store(packed.at(set, d, tap) + v * lanes<T>, value);
    });
  }
}

// grad_weight[c][k] of one tap: += x[pixel, channel + i] * dz[v][pixel, lane] over rows of pixels.
template <class T, int ROWS, int VECTORS>
__attribute__((noinline)) void accumulate_rows(const T* x, int64_t x_row, const T* dz,
                                               int64_t dz_row, int64_t dz_block, int64_t rows,
                                               int64_t pixels, T* sums, int64_t sums_row) {
  constexpr int L = lanes<T>;
  Vector<T> total[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) total[i][v] = load(sums + i * sums_row + v * L);
  }
  for (int64_t y = 0; y < rows; ++y) {
    const T *a = x + y * x_row, *b = dz + y * dz_row;
    for (int64_t p = 0; p < pixels; ++p, a += L, b += L) {
      Vector<T> column[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) column[v] = load(b + v * dz_block);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) total[i][v] += a[i] * column[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(sums + i * sums_row + v * L, total[i][v]);
  }
}

// Rows of sums that stay in registers: they divide a block of channels.
#if defined(__AVX512F__)
constexpr int sum_rows = 8;
#elif defined(__AVX2__)
constexpr int sum_rows = 4;
#else
constexpr int sum_rows = 2;
#endif

template <class T>
using AccumulateRows = void (*)(const T*, int64_t, const T*, int64_t, int64_t, int64_t, int64_t, T*,
                                int64_t);

template <class T, int ROWS>
AccumulateRows<T> find_accumulate(int rows, int vectors) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return find_accumulate<T, ROWS - 1>(rows, vectors);
  }
  return vectors == 1 ? &accumulate_rows<T, ROWS, 1> : &accumulate_rows<T, ROWS, tile_vectors<T>>;
}

// The same for `channels` of a block.
template <class T>
void accumulate(int channels, int vectors, const T* x, int64_t x_row, const T* dz, int64_t dz_row,
                int64_t dz_block, int64_t rows, int64_t pixels, T* sums, int64_t sums_row) {
  for (int c = 0; c < channels; c += sum_rows) {
    const int count = channels - c < sum_rows ? channels - c : sum_rows;
    find_accumulate<T, sum_rows>(count, vectors)(x + c, x_row, dz, dz_row, dz_block, rows, pixels,
                                                 sums + c * sums_row, sums_row);
  }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

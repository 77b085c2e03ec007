#pragma once

#include "conv2d/direct.h"

// Minimal filtering F(2x2, 3x3) (Winograd; Lavin, Gray 2015): 4x4 tiles of the source, overlapping
// by two, give 2x2 targets with 16 products in place of 36. Each of the 16 elements of the
// transformed tiles is a matrix product over the channels, of [tiles, depth] and [depth, targets].

namespace lamina {
namespace LAMINA_ISA {
namespace {

constexpr int tile_elements = 16;

// t = B' d along one direction, and B likewise.
template <class V>
inline void transform_source(V d0, V d1, V d2, V d3, V* t, int step) {
  t[0] = d0 - d2;
  t[step] = d1 + d2;
  t[2 * step] = d2 - d1;
  t[3 * step] = d1 - d3;
}

// Transforms the tiles of one staged block: target[element][tile], elements `stride` apart. Tiles
// are 2 x 2 targets, `down` x `across` of them.
template <class T>
void transform_tiles(const T* block, int64_t row_pitch, int64_t down, int64_t across, T* target,
                     int64_t stride) {
  constexpr int L = lanes<T>;
  for (int64_t ty = 0; ty < down; ++ty) {
    const T* const rows = block + 2 * ty * row_pitch * L;
    const auto column = [&](int64_t x, Vector<T>* t) {
      const T* const top = rows + x * L;
      transform_source(load(top), load(top + row_pitch * L), load(top + 2 * row_pitch * L),
                       load(top + 3 * row_pitch * L), t, 1);
    };
    Vector<T> t[4][4];
    column(0, t[0]);
    column(1, t[1]);
    for (int64_t tx = 0; tx < across; ++tx, target += L) {
      column(2 * tx + 2, t[2]);
      column(2 * tx + 3, t[3]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        Vector<T> v[4];
        transform_source(t[0][i], t[1][i], t[2][i], t[3][i], v, 1);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) store(target + (4 * i + j) * stride, v[j]);
        t[0][i] = t[2][i];
        t[1][i] = t[3][i];
      }
    }
  }
}

// z = A' m A: the 2 x 2 targets of each tile, without those past the edges of [height, width].
template <class T>
void untransform_tiles(const T* tiles, int64_t stride, int64_t height, int64_t width, T* z) {
  constexpr int L = lanes<T>;
  for (int64_t y = 0; y < height; y += 2) {
    for (int64_t x = 0; x < width; x += 2, tiles += L) {
      Vector<T> t[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vector<T> m0 = load(tiles + j * stride), m1 = load(tiles + (4 + j) * stride),
                        m2 = load(tiles + (8 + j) * stride), m3 = load(tiles + (12 + j) * stride);
        t[0][j] = m0 + m1 + m2;
        t[1][j] = m1 - m2 - m3;
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        if (y + i >= height) break;
        T* const row = z + ((y + i) * width + x) * L;
        store(row, t[i][0] + t[i][1] + t[i][2]);
        if (x + 1 < width) store(row + L, t[i][1] - t[i][2] - t[i][3]);
      }
    }
  }
}

// u = G g G' of one vector of 3x3 filters, elements `stride` apart.
template <class T>
void transform_filter(const Vector<T> (&g)[9], T* u, int64_t stride) {
  Vector<T> t[4][3];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    const Vector<T> even = (g[j] + g[6 + j]) * static_cast<T>(0.5);
    const Vector<T> odd = g[3 + j] * static_cast<T>(0.5);
    t[0][j] = g[j];
    t[1][j] = even + odd;
    t[2][j] = even - odd;
    t[3][j] = g[6 + j];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Vector<T> even = (t[i][0] + t[i][2]) * static_cast<T>(0.5);
    const Vector<T> odd = t[i][1] * static_cast<T>(0.5);
    store(u + (4 * i) * stride, t[i][0]);
    store(u + (4 * i + 1) * stride, even + odd);
    store(u + (4 * i + 2) * stride, even - odd);
    store(u + (4 * i + 3) * stride, t[i][2]);
  }
}

// m = A dz A': 2 x 2 pixels of a staged block of dZ to each tile, the transpose of
// untransform_tiles.
template <class T>
void transform_gradient(const T* block, int64_t row_pitch, int64_t down, int64_t across, T* target,
                        int64_t stride) {
  constexpr int L = lanes<T>;
  for (int64_t ty = 0; ty < down; ++ty) {
    for (int64_t tx = 0; tx < across; ++tx, target += L) {
      const T* const top = block + (2 * ty * row_pitch + 2 * tx) * L;
      Vector<T> t[4][2];
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const Vector<T> a = load(top + j * L), b = load(top + (row_pitch + j) * L);
        t[0][j] = a;
        t[1][j] = a + b;
        t[2][j] = a - b;
        t[3][j] = -b;
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        store(target + (4 * i) * stride, t[i][0]);
        store(target + (4 * i + 1) * stride, t[i][0] + t[i][1]);
        store(target + (4 * i + 2) * stride, t[i][0] - t[i][1]);
        store(target + (4 * i + 3) * stride, -t[i][1]);
      }
    }
  }
}

// g = G' u G: one vector of transformed filters back to 3x3, elements `stride` apart. All of u is
// read before g is written, which may overlap it.
template <class T>
void untransform_filter(const T* u, T* g, int64_t stride) {
  Vector<T> t[3][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vector<T> u0 = load(u + j * stride), u1 = load(u + (4 + j) * stride),
                    u2 = load(u + (8 + j) * stride), u3 = load(u + (12 + j) * stride);
    const Vector<T> even = (u1 + u2) * static_cast<T>(0.5);
    t[0][j] = u0 + even;
    t[1][j] = (u1 - u2) * static_cast<T>(0.5);
    t[2][j] = even + u3;
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Vector<T> even = (t[i][1] + t[i][2]) * static_cast<T>(0.5);
    store(g + (3 * i) * stride, t[i][0] + even);
    store(g + (3 * i + 1) * stride, (t[i][1] - t[i][2]) * static_cast<T>(0.5));
    store(g + (3 * i + 2) * stride, even + t[i][3]);
  }
}

// Transforms one lane set of filters: u[element][set][depth][lane]. `flip` turns each filter by 180
// degrees, as the transposed convolution has it.
template <class T, class S>
void transform_set(const Weights<S>& weights, int64_t set, bool flip, T* u, int64_t stride) {
  for (int v = 0; v < tile_vectors<T>; ++v) {
    const int64_t first = set * set_lanes<T> + v * lanes<T>;
    if (first >= weights.targets) continue;
    Vector<T> filter[9];
    each_weight_vector<T>(weights, first, [&](int64_t d, int64_t tap, Vector<T> value) {
      filter[flip ? 8 - tap : tap] = value;
      if (tap < 8) return;
      T* const target = u + (set * weights.depth + d) * set_lanes<T> + v * lanes<T>;
      transform_filter<T>(filter, target, stride);
    });
  }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "conv2d/direct.h"

// Minimal filtering F(M x M, 3x3) (Winograd; Lavin, Gray 2015), M = 2 or 4: tiles of M + 2 pixels
// squared, overlapping by two, give M x M targets with (M + 2)^2 products in place of 9 M^2. Each
// of the elements of the transformed tiles is a matrix product over the channels, of
// [tiles, depth] and [depth, targets].

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The three transforms along one direction.
template <class T, int M>
struct Minimal;

// Polynomials at 0, 1, -1 and infinity: sums and halves, so that little is rounded.
template <class T>
struct Minimal<T, 2> {
  using V = Vector<T>;

  static void source(const V (&d)[4], V (&t)[4]) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  }
  static void filter(const V (&g)[3], V (&u)[4]) {
    constexpr T half = 0.5;
    const V even = (g[0] + g[2]) * half, odd = g[1] * half;
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
  static void target(const V (&m)[4], V (&z)[2]) {
    z[0] = m[0] + m[1] + m[2];
    z[1] = m[1] - m[2] - m[3];
  }
};

// Polynomials at 0, a, -a, b, -b and infinity. Points whose powers stay near 1 round least: with
// 5/8 and 3/2 the error is half of what the usual 1 and 2 (or 1/2 and 1) leave, and all constants
// but 1 / n are exact.
template <class T>
struct Minimal<T, 4> {
  using V = Vector<T>;
  static constexpr T a = 0.625, b = 1.5, a2 = a * a, b2 = b * b;

  static void source(const V (&d)[6], V (&t)[6]) {
    const V even_a = d[4] - d[2] * b2, odd_a = (d[3] - d[1] * b2) * a;
    const V even_b = d[4] - d[2] * a2, odd_b = (d[3] - d[1] * a2) * b;
    t[0] = d[0] * (a2 * b2) - d[2] * (a2 + b2) + d[4];
    t[1] = even_a + odd_a;
    t[2] = even_a - odd_a;
    t[3] = even_b + odd_b;
    t[4] = even_b - odd_b;
    t[5] = d[1] * (a2 * b2) - d[3] * (a2 + b2) + d[5];
  }
  static void filter(const V (&g)[3], V (&u)[6]) {
    constexpr T n_a = 1 / (2 * a2 * (a2 - b2)), n_b = 1 / (2 * b2 * (b2 - a2));
    const V even_a = (g[0] + g[2] * a2) * n_a, odd_a = g[1] * (a * n_a);
    const V even_b = (g[0] + g[2] * b2) * n_b, odd_b = g[1] * (b * n_b);
    u[0] = g[0] * (1 / (a2 * b2));
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
  }
  static void target(const V (&m)[6], V (&z)[4]) {
    const V even_a = m[1] + m[2], odd_a = (m[1] - m[2]) * a;
    const V even_b = m[3] + m[4], odd_b = (m[3] - m[4]) * b;
    z[0] = m[0] + even_a + even_b;
    z[1] = odd_a + odd_b;
    z[2] = even_a * a2 + even_b * b2;
    z[3] = odd_a * a2 + odd_b * b2 + m[5];
  }
};

// Transforms the tiles of one staged block, `down` x `across` of them: target[element][tile],
// elements `stride` apart.
template <int M, class T>
void transform_tiles(const T* block, int64_t row_pitch, int64_t down, int64_t across, T* target,
                     int64_t stride) {
  constexpr int L = lanes<T>, size = M + 2;
  for (int64_t ty = 0; ty < down; ++ty) {
    const T* const rows = block + M * ty * row_pitch * L;
    const auto column = [&](int64_t x, Vector<T>(&t)[size]) {
      Vector<T> d[size];
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) d[i] = load(rows + (i * row_pitch + x) * L);
      Minimal<T, M>::source(d, t);
    };
    Vector<T> t[size][size];
    column(0, t[0]);
    column(1, t[1]);
    for (int64_t tx = 0; tx < across; ++tx, target += L) {
#pragma GCC unroll 4
      for (int i = 2; i < size; ++i) column(M * tx + i, t[i]);
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) {
        Vector<T> row[size], v[size];
#pragma GCC unroll 6
        for (int j = 0; j < size; ++j) row[j] = t[j][i];
        Minimal<T, M>::source(row, v);
#pragma GCC unroll 6
        for (int j = 0; j < size; ++j) store(target + (size * i + j) * stride, v[j]);
        t[0][i] = t[M][i];
        t[1][i] = t[M + 1][i];
      }
    }
  }
}

// The M x M targets of each tile, without those past the edges of [height, width].
template <int M, class T>
void untransform_tiles(const T* tiles, int64_t stride, int64_t height, int64_t width, T* z) {
  constexpr int L = lanes<T>, size = M + 2;
  for (int64_t y = 0; y < height; y += M) {
    for (int64_t x = 0; x < width; x += M, tiles += L) {
      Vector<T> t[M][size];
#pragma GCC unroll 6
      for (int j = 0; j < size; ++j) {
        Vector<T> m[size], column[M];
#pragma GCC unroll 6
        for (int i = 0; i < size; ++i) m[i] = load(tiles + (size * i + j) * stride);
        Minimal<T, M>::target(m, column);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) t[i][j] = column[i];
      }
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        if (y + i >= height) break;
        Vector<T> row[M];
        Minimal<T, M>::target(t[i], row);
        T* const place = z + ((y + i) * width + x) * L;
#pragma GCC unroll 4
        for (int j = 0; j < M; ++j)
          if (x + j < width) store(place + j * L, row[j]);
      }
    }
  }
}

// One vector of 3x3 filters transformed, elements `stride` apart.
template <int M, class T>
void transform_filter(const Vector<T> (&g)[9], T* u, int64_t stride) {
  constexpr int size = M + 2;
  Vector<T> t[3][size];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    const Vector<T> column[3] = {g[j], g[3 + j], g[6 + j]};
    Minimal<T, M>::filter(column, t[j]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < size; ++i) {
    const Vector<T> row[3] = {t[0][i], t[1][i], t[2][i]};
    Vector<T> v[size];
    Minimal<T, M>::filter(row, v);
#pragma GCC unroll 6
    for (int j = 0; j < size; ++j) store(u + (size * i + j) * stride, v[j]);
  }
}

// The gradient of the filters is F(3x3, 2x2), the transpose of F(2x2, 3x3), whatever M.
constexpr int gradient_elements = 16;

// m = A dz A': 2 x 2 pixels of a staged block of dZ to each tile, the transpose of
// untransform_tiles<2>.
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

// Transforms one lane set of filters: u[element][depth][lane], elements `stride` apart. `flip`
// turns each filter by 180 degrees, as the transposed convolution has it.
template <int M, class T, class S>
void transform_set(const Weights<S>& weights, int64_t set, bool flip, T* u, int64_t stride) {
  for (int v = 0; v < tile_vectors<T>; ++v) {
    const int64_t first = set * set_lanes<T> + v * lanes<T>;
    if (first >= weights.targets) continue;
    Vector<T> filter[9];
    each_weight_vector<T>(weights, first, [&](int64_t d, int64_t tap, Vector<T> value) {
      filter[flip ? 8 - tap : tap] = value;
      if (tap < 8) return;
      transform_filter<M>(filter, u + d * set_lanes<T> + v * lanes<T>, stride);
    });
  }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

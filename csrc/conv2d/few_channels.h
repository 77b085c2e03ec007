#pragma once

#include "conv2d/planes.h"

// The forward pass of first layers, contiguous: tiles of channels x pixels, as the GEMM's, but
// nothing is packed of the pixels: vectors of them are read from the planes, an offset for each
// element of a filter.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// tile[ROWS][VECTORS vectors] (+)= A panel * columns, of which vector j at depth d is
// x[j][offsets[d]...]. The tile and the panel are the GEMM's (micro_kernel.h).
template <class T, int ROWS, int VECTORS>
__attribute__((noinline)) void plane_micro_kernel(int64_t depth, const T* a, const T* const* x,
                                                  const int64_t* offsets, T* tile,
                                                  bool accumulate) {
  const T* pixels[VECTORS];
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; ++j) pixels[j] = x[j];
  Vector<T> sum[ROWS][VECTORS] = {};
  for (int64_t d = 0; d < depth; ++d) {
    const int64_t offset = offsets[d];
    Vector<T> column[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) column[j] = load(pixels[j] + offset);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sum[i][j] += a[i] * column[j];
    }
    a += tile_rows<T>;
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) {
      T* const target = tile + i * tile_columns<T> + j * lanes<T>;
      store(target, accumulate ? load(target) + sum[i][j] : sum[i][j]);
    }
  }
}

template <class T>
using PlaneMicroKernel = void (*)(int64_t, const T*, const T* const*, const int64_t*, T*, bool);

template <class T, int ROWS>
PlaneMicroKernel<T> find_plane_micro_kernel(int rows, int vectors) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return find_plane_micro_kernel<T, ROWS - 1>(rows, vectors);
  }
  return vectors == 1 ? &plane_micro_kernel<T, ROWS, 1>
                      : &plane_micro_kernel<T, ROWS, tile_vectors<T>>;
}

template <class S, Kind K>
class FewChannels {
 public:
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>, V = tile_vectors<T>, R = tile_rows<T>;

  FewChannels(const Conv2dShape& shape, const S* input, const S* weight, const Finish<S>& to,
              const Parallel& parallel)
      : shape_(shape),
        to_(to),
        finisher_(to),
        parallel_(parallel),
        depth_(shape.channels * shape.kernel[0] * shape.kernel[1]),
        weight_{weight, depth_, 1, shape.outs},
        panels_(shape.outs, R),
        planes_(shape, input, strip_rows(), shape.stride[1]) {}

  void run() {
    const int64_t strips = ceil_div(shape_.out_height, planes_.rows);
    const int64_t tasks = shape_.images * strips;
    const int64_t workers = min64(parallel_.threads, tasks);
    mask_size_ = planes_.rows * shape_.out_width / 8 + 16;
    const int64_t own_bytes =
        Arena::bytes<T>(planes_.size()) + Arena::bytes<uint8_t>(R * mask_size_);
    Arena arena{static_cast<char*>(workspace(Arena::bytes<int64_t>(depth_) +
                                             Arena::bytes<T>(panels_.panels * panel_size()) +
                                             workers * own_bytes))};
    offsets_ = arena.take<int64_t>(depth_);
    packed_ = arena.take<T>(panels_.panels * panel_size());
    char* const own = arena.take<char>(workers * own_bytes);

    planes_.make_offsets(offsets_);
    each_task(parallel_, panels_.panels, [&](int, int64_t panel) { pack_filters(panel); });
    each_task(parallel_, tasks, [&](int worker, int64_t task) {
      Arena mine{own + worker * own_bytes};
      T* const staged = mine.take<T>(planes_.size());
      uint8_t* const bits = mine.take<uint8_t>(R * mask_size_);
      const int64_t from = task % strips * planes_.rows;
      const int64_t past = min64(from + planes_.rows, shape_.out_height);
      planes_.stage(task / strips, from, past, staged);
      for (int64_t panel = 0; panel < panels_.panels; ++panel)
        multiply_strip(task / strips, from, past, panel, staged, bits);
    });
  }

 private:
  // The vectors of a tile: where they are staged, and their pixels in the image of the output.
  struct Tile {
    const T* source[V];
    int64_t pixel[V];
    int count[V], vectors, pixels;
  };

  // Strips are cut until every thread has a few; how does not change any sum.
  int64_t strip_rows() const {
    const int64_t fit = plane_rows<T>(shape_, 0, 128 << 10);
    const int64_t wanted = ceil_div(8 * parallel_.threads, shape_.images > 0 ? shape_.images : 1);
    return min64(fit, ceil_div(shape_.out_height, min64(wanted, shape_.out_height)));
  }

  int64_t panel_size() const { return round_up(depth_ * R + L, L); }

  void pack_filters(int64_t panel) const {
    T* target = packed_ + panel * panel_size();
    for (int64_t d = 0; d < depth_; d += blocking.depth)
      weight_.template pack<R>(target + d * R, panels_.first(panel), panels_.count(panel), d,
                               static_cast<int>(min64(blocking.depth, depth_ - d)));
  }

  // All tiles of a panel of filters and rows [from, past) of an image's output.
  void multiply_strip(int64_t image, int64_t from, int64_t past, int64_t panel, const T* staged,
                      uint8_t* bits) const {
    const int64_t width = shape_.out_width, channel = panels_.first(panel);
    const int64_t vectors = (past - from) * ceil_div(width, L);
    const int64_t first_bit = to_.layout.mask_bit(image, channel, from * width);
    const int rows = panels_.count(panel);
    const T* const filters = packed_ + panel * panel_size();
    const bool masked = K == Kind::piecewise && to_.mask != nullptr;
    if (masked) __builtin_memset(bits, 0, R * mask_size_);
    alignas(64) T sums[R * tile_columns<T>];
    Tile tile{};
    int64_t y = 0, x = 0;
    for (int64_t done = 0; done < vectors; done += V) {
      tile.vectors = static_cast<int>(min64(V, vectors - done));
      tile.pixels = 0;
      for (int j = 0; j < tile.vectors; ++j) {
        tile.source[j] = staged + y * planes_.row_pitch() + x;
        tile.pixel[j] = (from + y) * width + x;
        tile.count[j] = static_cast<int>(min64(L, width - x));
        tile.pixels += tile.count[j];
        x += L;
        if (x >= width) x = 0, ++y;
      }
      for (int j = tile.vectors; j < V; ++j) tile.source[j] = staged;
      const PlaneMicroKernel<T> multiply = find_plane_micro_kernel<T, R>(rows, tile.vectors);
      // At least one pass, also without any depth: the sums are zeros then.
      for (int64_t d = 0; d == 0 || d < depth_; d += blocking.depth)
        multiply(min64(blocking.depth, depth_ - d), filters + d * R, tile.source, offsets_ + d,
                 sums, d > 0);
      const int64_t bit = first_bit % 8 + tile.pixel[0] - from * width;
      if (masked)
        finish_tile<true>(tile, sums, image, channel, rows, bits + bit / 8, bit % 8);
      else
        finish_tile<false>(tile, sums, image, channel, rows, nullptr, 0);
    }
    if (!masked) return;
    for (int i = 0; i < rows; ++i)
      merge_bits(to_.mask + (channel + i) * to_.mask_stride, first_bit, (past - from) * width,
                 bits + i * mask_size_);
  }

  template <bool MASKED>
  void finish_tile(const Tile& tile, const T* sums, int64_t image, int64_t channel, int rows,
                   uint8_t* target, int64_t shift) const {
    if (tile.pixels == tile_columns<T>)
      finish_rows<MASKED, true>(tile, sums, image, channel, rows, target, shift);
    else
      finish_rows<MASKED, false>(tile, sums, image, channel, rows, target, shift);
  }

  // Of each row the bits of all vectors, which follow each other, go to `target` from bit `shift`
  // on. WHOLE: all vectors, with all their lanes.
  template <bool MASKED, bool WHOLE>
  LAMINA_INLINE void finish_rows(const Tile& tile, const T* sums, int64_t image, int64_t channel,
                                 int rows, uint8_t* target, int64_t shift) const {
    // By value: stored vectors may alias what a reference leads to.
    const Finisher<S, K> finisher = finisher_;
    const Tile at = tile;
    const S* const bias = to_.bias == nullptr ? nullptr : to_.bias + channel;
    const int64_t step = to_.layout.pixels, next = mask_size_;
    int64_t offset = to_.layout.offset(image, channel, 0);
    for (int i = 0; i < rows; ++i, sums += tile_columns<T>, offset += step) {
      const T shifted = bias == nullptr ? 0 : load_element(bias + i);
      uint64_t bits = 0;
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) {
        if (!WHOLE && j >= at.vectors) break;
        const uint64_t kept = finisher.template put<MASKED>(
            load(sums + j * L) + shifted, offset + at.pixel[j], WHOLE ? L : at.count[j]);
        bits |= kept << (WHOLE ? j * L : at.pixel[j] - at.pixel[0]);
      }
      if (!MASKED) continue;
      uint64_t word;
      __builtin_memcpy(&word, target, sizeof word);
      word |= bits << shift;
      __builtin_memcpy(target, &word, sizeof word);
      target += next;
    }
  }

  // Bits [first, first + count) of a row of the mask; bits[0] is the first byte. Only bytes at the
  // ends may hold bits of other strips, which other threads write.
  static void merge_bits(uint8_t* row, int64_t first, int64_t count, const uint8_t* bits) {
    uint8_t* const target = row + first / 8;
    const int64_t past = first % 8 + count, begin = first % 8 != 0, end = past / 8;
    if (begin < end) __builtin_memcpy(target + begin, bits + begin, end - begin);
    if (begin > 0) __atomic_fetch_or(target, bits[0], __ATOMIC_RELAXED);
    if (past % 8 != 0 && end >= begin) __atomic_fetch_or(target + end, bits[end], __ATOMIC_RELAXED);
  }

  const Conv2dShape& shape_;
  const Finish<S>& to_;
  const Finisher<S, K> finisher_;
  const Parallel& parallel_;
  const int64_t depth_;
  const Matrix<T, S> weight_;
  const RowPanels panels_;
  const Planes<S> planes_;
  int64_t mask_size_ = 0;  // bytes of a row of a strip's bits
  int64_t* offsets_ = nullptr;
  T* packed_ = nullptr;
};

template <class S>
void few_channels_forward(const Conv2dShape& shape, const S* input, const S* weight,
                          const Finish<S>& to, const Parallel& parallel) {
  with_kind(to.activation, [&](auto kind) {
    FewChannels<S, decltype(kind)::value>(shape, input, weight, to, parallel).run();
  });
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "conv2d/pixel_grid.h"
#include "conv2d/stage.h"

// Images as operands of the GEMM (pack.h), plain or times the derivative of an activation.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Loaders (pack.h) hold what they need by value: packing stores vectors, which may alias anything
// that a reference leads to.

// Vectors of channels for each pixel (channels_last).
template <class S, Kind K>
struct ChannelLoader {
  const Reader<S, K> reader;
  const PixelGrid grid;
  const bool dense;
  const int64_t ahead;

  LAMINA_INLINE Vector<Accumulator<S>> operator()(int64_t row, int64_t column, int count) const {
    const int64_t pixel = dense ? row : grid.pixel(row);
    __builtin_prefetch(reader.from.data + reader.from.layout.offset(0, column, pixel) + ahead);
    return reader(0, column, pixel, count);
  }
};

// Every second element of 2 * lanes<T> - 1.
template <class S>
inline Vector<Accumulator<S>> load_even(const S* source) {
  using T = Accumulator<S>;
  constexpr int L = lanes<T>;
  Mask<T> picked{};
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) picked[i] = 2 * i + (i < L / 2 ? 0 : 1);
  return __builtin_shuffle(load(source), load(source + L - 1), picked);
}

// Vectors of a run's pixels for each channel.
template <class S, Kind K>
struct PixelLoader {
  const Reader<S, K> reader;
  const PixelGrid::Run run;
  const int64_t stride;

  LAMINA_INLINE Vector<Accumulator<S>> operator()(int64_t row, int64_t column, int count) const {
    const int64_t pixel = run.pixel + column * stride;
    const S* const source = reader.from.data + reader.from.layout.offset(run.image, row, pixel);
    __builtin_prefetch(source + ahead_bytes / sizeof(S));
    if constexpr (K == Kind::none) {
      if (stride == 2 && count == lanes<Accumulator<S>>) return load_even(source);
      if (stride != 1) return gather(source, stride, count);
    }
    return reader(run.image, row, pixel, count);
  }
};

// Panels along the pixels, depth along the channels: channels_last for A, contiguous for B.
template <class S, Kind K, bool CHANNELS_LAST>
struct PixelPanels {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;
  const Reader<S, K> reader;
  const PixelGrid grid;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if constexpr (CHANNELS_LAST) {
      const ChannelLoader<S, K> loader{reader, grid, grid.dense(), ahead_bytes / sizeof(S)};
      pack_transposed<T, WIDTH>(loader, panel, first, count, depth, depths);
    } else {
      const PixelGrid::Run run = grid.run(first, count);
      if (grid.dense() && run.length == WIDTH)
        pack_pixels<WIDTH>(reader, run, panel, depth, depths);
      else
        pack_joined<WIDTH>(reader, panel, first, count, depth, depths);
    }
  }
  template <int WIDTH>
  void packed(const T*, int64_t, int, int64_t, int) const {}

  template <int WIDTH>
  void prefetch(int64_t first, int count, int64_t depth, int depths) const {
    if constexpr (!CHANNELS_LAST) {
      const PixelGrid::Run run = grid.run(first, count);
      const S* row = reader.from.data + reader.from.layout.offset(run.image, depth, run.pixel);
      const int64_t length = run.length * grid.stride[1], line = 64 / sizeof(S);
      for (int d = 0; d < depths; ++d, row += reader.from.layout.pixels)
        for (int64_t e = 0; e < length; e += line) prefetch_to_l2(row + e);
    }
  }

 private:
  // Pixels side by side in one image. The caches are asked for the next panel.
  template <int WIDTH>
  void pack_pixels(Reader<S, K> reader, PixelGrid::Run run, T* panel, int64_t depth,
                   int depths) const {
    const S* next =
        reader.from.data + reader.from.layout.offset(run.image, depth, run.pixel) + WIDTH;
    const int64_t pixels = reader.from.layout.pixels;
    for (int d = 0; d < depths; ++d, panel += WIDTH, next += pixels) {
#pragma GCC unroll 4
      for (int base = 0; base < WIDTH; base += L) {
        __builtin_prefetch(next + base);
        store(panel + base, reader(run.image, depth + d, run.pixel + base, L));
      }
    }
  }

  // Vectors of pixels, joined from runs. A run is stored as a whole vector: the next one, or zeros,
  // overwrite its end.
  template <int WIDTH>
  void pack_joined(Reader<S, K> reader, T* panel, int64_t first, int count, int64_t depth,
                   int depths) const {
    const Runs<T> runs(grid, first, count);
    const int64_t stride = grid.stride[1];
    T joined[WIDTH + L];
    for (int d = 0; d < depths; ++d, panel += WIDTH) {
      for (int i = 0; i < runs.count; ++i) {
        const PixelLoader<S, K> loader{reader, runs.run[i], stride};
        store(joined + runs.column[i], loader(depth + d, 0, static_cast<int>(runs.run[i].length)));
      }
      store(joined + count, Vector<T>{});
#pragma GCC unroll 4
      for (int base = 0; base < WIDTH; base += L)
        store(panel + base, base < count ? load(joined + base) : Vector<T>{});
    }
  }
};

// Panels along the channels, depth along the pixels. With partial_sums, an array
// [ceil(pixels / blocking.depth), channels], each packed block leaves its sums over the pixels
// there.
template <class S, Kind K>
struct PixelDepth {
  using T = Accumulator<S>;
  const Reader<S, K> reader;
  const PixelGrid grid;
  T* const partial_sums;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    const Layout& layout = reader.from.layout;
    if (layout.channels_last) {
      // The caches are asked for the next panel.
      const ChannelLoader<S, K> loader{reader, grid, grid.dense(), WIDTH};
      return pack_rows<T, WIDTH>(loader, panel, first, count, depth, depths, layout.channels);
    }
    for (int64_t done = 0; done < depths;) {
      const PixelGrid::Run run = grid.run(depth + done, depths - done);
      pack_transposed<T, WIDTH>(PixelLoader<S, K>{reader, run, grid.stride[1]},
                                panel + done * WIDTH, first, count, 0,
                                static_cast<int>(run.length));
      done += run.length;
    }
  }

  template <int WIDTH>
  void packed(const T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if (partial_sums == nullptr) return;
    T* const sums = partial_sums + depth / blocking.depth * reader.from.layout.channels + first;
    sum_over_depth<T, WIDTH>(panel, count, depths, sums);
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "conv2d/pixel_grid.h"
#include "conv2d/stage.h"

// Images as operands of the GEMM (pack.h), plain or times the derivative of an activation.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Loaders (pack.h) hold what they need by value: packing stores vectors, which may alias anything
// that a reference leads to.

// Whether a tensor's elements are those of the product.
template <class S, Kind K>
constexpr bool lies_plain = K == Kind::none && sizeof(S) == sizeof(Accumulator<S>);

// Vectors of channels for each pixel (channels_last), at bytes of the mask if ALIGNED.
template <class S, Kind K, bool ALIGNED>
struct ChannelLoader {
  const Reader<S, K> reader;
  const PixelGrid grid;
  const bool dense;
  const int64_t ahead;

  LAMINA_INLINE Vector<Accumulator<S>> operator()(int64_t row, int64_t column, int count) const {
    const int64_t pixel = dense ? row : grid.pixel(row);
    const int64_t offset = pixel * reader.from.layout.channels + column;
    __builtin_prefetch(reader.from.data + offset + ahead);
    return reader.template at<ALIGNED>(offset, reader.mask_row(pixel), column, count);
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

// Pixels `stride` apart of a channel, from `offset` in the tensor and `bit` in the mask on.
template <bool ALIGNED, class S, Kind K>
LAMINA_INLINE Vector<Accumulator<S>> load_pixels(const Reader<S, K>& reader, int64_t offset,
                                                 int64_t channel, int64_t bit, int64_t stride,
                                                 int count) {
  if constexpr (K == Kind::none) {
    const S* const source = reader.from.data + offset;
    if (stride == 2 && count == lanes<Accumulator<S>>) return load_even(source);
    if (stride != 1) return gather(source, stride, count);
  }
  return reader.template at<ALIGNED>(offset, reader.mask_row(channel), bit, count);
}

// Vectors of a run's pixels for each channel, at bytes of the mask if ALIGNED.
template <class S, Kind K, bool ALIGNED>
struct PixelLoader {
  const Reader<S, K> reader;
  const int64_t first, bit, channel_stride, stride;  // first: the run's first pixel in channel 0

  PixelLoader(const Reader<S, K>& of, const PixelGrid::Run& run, int64_t stride_)
      : reader(of),
        first(of.from.layout.offset(run.image, 0, run.pixel)),
        bit(of.from.layout.mask_bit(run.image, 0, run.pixel)),
        channel_stride(of.from.layout.pixels),
        stride(stride_) {}

  LAMINA_INLINE Vector<Accumulator<S>> operator()(int64_t row, int64_t column, int count) const {
    const int64_t offset = first + row * channel_stride + column * stride;
    __builtin_prefetch(reader.from.data + offset + ahead_bytes / sizeof(S));
    return load_pixels<ALIGNED>(reader, offset, row, bit + column, stride, count);
  }
};

// Whether B, contiguous images, is read in place where each panel is used so many times: what
// packing costs must be more than what rows lying apart do. They do most where they share sets of
// the L1 or begin within lines, and where a tile has little to sum.
template <class T>
bool reads_in_place(int64_t uses, int64_t pixels, int64_t depth) {
  const int64_t row = pixels * static_cast<int64_t>(sizeof(T));
  if (pixels < 4 * tile_columns<T>) return false;
  return uses <= 6 || (uses <= 12 && depth >= 128 && row % 64 == 0 && row % 4096 != 0);
}

// Panels along the pixels, depth along the channels: channels_last for A, contiguous for B, each of
// whose panels is used `uses` times.
template <class S, Kind K, bool CHANNELS_LAST>
struct PixelPanels {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;
  const Reader<S, K> reader;
  const PixelGrid grid;
  const int64_t uses;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if constexpr (CHANNELS_LAST) {
      const ChannelLoader<S, K, true> loader{reader, grid, grid.dense(), ahead_bytes / sizeof(S)};
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

  InPlace<T> in_place(int64_t first, int count, int64_t depth, int) const {
    if constexpr (lies_plain<S, K>) {
      const Layout& layout = reader.from.layout;
      if (!grid.dense()) return {nullptr, 0, 0};
      if (CHANNELS_LAST) {
        // Rows that begin further apart share too few sets of the L1.
        if (layout.channels * sizeof(S) <= 2048)
          return {reader.from.data + first * layout.channels + depth, layout.channels, 1};
      } else if (reads_in_place<T>(uses, layout.pixels, layout.channels)) {
        const PixelGrid::Run run = grid.run(first, count);
        if (run.length == count)
          return {reader.from.data + layout.offset(run.image, depth, run.pixel), 1, layout.pixels};
      }
    }
    return {nullptr, 0, 0};
  }

  template <int WIDTH>
  void prefetch(int64_t first, int count, int64_t depth, int depths) const {
    const int64_t line = 64 / sizeof(S);
    if constexpr (CHANNELS_LAST) {
      for (int i = 0; i < count; ++i) {
        const S* const row = reader.from.data + grid.pixel(first + i) * reader.from.layout.channels;
        for (int64_t e = round_up(depth, line); e < depth + depths; e += line)
          prefetch_to_l2(row + e);
      }
    } else {
      const PixelGrid::Run run = grid.run(first, count);
      const S* row = reader.from.data + reader.from.layout.offset(run.image, depth, run.pixel);
      const int64_t length = run.length * grid.stride[1];
      for (int d = 0; d < depths; ++d, row += reader.from.layout.pixels)
        for (int64_t e = 0; e < length; e += line) prefetch_to_l2(row + e);
    }
  }

 private:
  // Pixels side by side in one image. The caches are asked for the next panel.
  template <int WIDTH>
  void pack_pixels(Reader<S, K> reader, PixelGrid::Run run, T* panel, int64_t depth,
                   int depths) const {
    const Layout layout = reader.from.layout;
    int64_t offset = layout.offset(run.image, depth, run.pixel);
    const int64_t bit = layout.mask_bit(run.image, depth, run.pixel);
    for (int d = 0; d < depths; ++d, panel += WIDTH, offset += layout.pixels) {
      const uint8_t* const mask = reader.mask_row(depth + d);
#pragma GCC unroll 4
      for (int base = 0; base < WIDTH; base += L) {
        __builtin_prefetch(reader.from.data + offset + WIDTH + base);
        store(panel + base, reader.template at<true>(offset + base, mask, bit + base, L));
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
    const Layout layout = reader.from.layout;
    T joined[WIDTH + L];
    for (int d = 0; d < depths; ++d, panel += WIDTH) {
      for (int i = 0; i < runs.count; ++i) {
        const PixelGrid::Run& run = runs.run[i];
        store(joined + runs.column[i],
              load_pixels<false>(reader, layout.offset(run.image, depth + d, run.pixel), depth + d,
                                 layout.mask_bit(run.image, depth + d, run.pixel), stride,
                                 static_cast<int>(run.length)));
      }
      store(joined + count, Vector<T>{});
#pragma GCC unroll 4
      for (int base = 0; base < WIDTH; base += L)
        store(panel + base, base < count ? load(joined + base) : Vector<T>{});
    }
  }
};

// Pixels whose channels begin further apart are copied before they are used: few sets of the L1
// would hold a channel of many.
constexpr int64_t near_bytes = 1024;

// Panels along the channels, depth along the pixels. With partial_sums, an array
// [ceil(pixels / pass_depth), channels], each packed block leaves its sums over the pixels there.
template <class S, Kind K>
struct PixelDepth {
  using T = Accumulator<S>;
  const Reader<S, K> reader;
  const PixelGrid grid;
  const int pass_depth;  // of the GEMM
  T* const partial_sums;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    const Layout& layout = reader.from.layout;
    if (layout.channels_last) {
      // The caches are asked for the next panel.
      const ChannelLoader<S, K, WIDTH % 8 == 0> loader{reader, grid, grid.dense(), WIDTH};
      return pack_rows<T, WIDTH>(loader, panel, first, count, depth, depths, layout.channels);
    }
    for (int64_t done = 0; done < depths;) {
      const PixelGrid::Run run = grid.run(depth + done, depths - done);
      // For B only, as which dZ is mostly packed: the code is large.
      constexpr bool by_bytes = K == Kind::piecewise && WIDTH % 8 == 0;
      if (by_bytes && layout.mask_bit(run.image, 0, run.pixel) % 8 == 0)
        pack_run<WIDTH, by_bytes>(run, panel + done * WIDTH, first, count);
      else
        pack_run<WIDTH, false>(run, panel + done * WIDTH, first, count);
      done += run.length;
    }
  }

  InPlace<T> in_place(int64_t first, int, int64_t depth, int depths) const {
    if constexpr (lies_plain<S, K>) {
      if (partial_sums != nullptr) return {nullptr, 0, 0};  // only of what is packed
      const Layout& layout = reader.from.layout;
      const PixelGrid::Run run = grid.run(depth, depths);
      if (grid.dense() && layout.channels_last && layout.channels * sizeof(S) <= near_bytes)
        return {reader.from.data + depth * layout.channels + first, 1, layout.channels};
      if (grid.dense() && !layout.channels_last && run.length == depths)
        return {reader.from.data + layout.offset(run.image, first, run.pixel), layout.pixels, 1};
    }
    return {nullptr, 0, 0};
  }

  template <int WIDTH>
  void prefetch(int64_t first, int count, int64_t depth, int depths) const {
    const Layout& layout = reader.from.layout;
    const int64_t line = 64 / sizeof(S);
    if (layout.channels_last) {
      for (int d = 0; d < depths; ++d) {
        const S* const row = reader.from.data + grid.pixel(depth + d) * layout.channels;
        for (int64_t e = round_up(first, line); e < first + count; e += line)
          prefetch_to_l2(row + e);
      }
      return;
    }
    const PixelGrid::Run run = grid.run(depth, depths);
    const S* row = reader.from.data + layout.offset(run.image, first, run.pixel);
    const int64_t length = run.length * grid.stride[1];
    for (int i = 0; i < count; ++i, row += layout.pixels)
      for (int64_t e = 0; e < length; e += line) prefetch_to_l2(row + e);
  }

  template <int WIDTH>
  void packed(const T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if (partial_sums == nullptr) return;
    T* const sums = partial_sums + depth / pass_depth * reader.from.layout.channels + first;
    sum_over_depth<T, WIDTH>(panel, count, depths, sums);
  }

 private:
  template <int WIDTH, bool ALIGNED>
  void pack_run(const PixelGrid::Run& run, T* panel, int64_t first, int count) const {
    pack_transposed<T, WIDTH>(PixelLoader<S, K, ALIGNED>(reader, run, grid.stride[1]), panel, first,
                              count, 0, static_cast<int>(run.length));
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

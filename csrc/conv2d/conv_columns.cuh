#pragma once

#include "common/gemm.cuh"
#include "conv2d/conv2d_cuda.h"

namespace lamina {

// A pixel of the grid. Pixels are counted in 32 bits, for the sake of the divisions; addresses are
// not.
struct GridPixel {
  unsigned image;
  int y, x;

  __device__ GridPixel(const ConvTaps& taps, int64_t index) {
    const auto p = static_cast<unsigned>(index);
    const auto width = static_cast<unsigned>(taps.horizontal.grid);
    const auto height = static_cast<unsigned>(taps.vertical.grid);
    image = p / width / height;
    y = static_cast<int>(p / width % height);
    x = static_cast<int>(p % width);
  }
};

// The row or column that a tap reads.
__device__ __forceinline__ int read_place(const ConvAxis& axis, int grid, int tap) {
  return grid * axis.scale + axis.offset + tap * axis.step;
}

// Element (pixel, n) of the columns of one group, n = (r, s, channel).
template <typename T>
struct Columns {
  const T* data;
  ConvTaps taps;
  int64_t pixels, height, width, pixel_stride;
  int groups, channels;

  Columns(const ConvImages& images, const ConvTaps& taps, int groups)
      : data(static_cast<const T*>(images.data)),
        taps(taps),
        pixels(images.count * taps.pixels()),
        height(images.height),
        width(images.width),
        pixel_stride(images.channels),
        groups(groups),
        channels(static_cast<int>(images.channels / groups)) {}

  __device__ void select(int group) { data += group * channels; }
  LAMINA_HOST_DEVICE int64_t size() const { return static_cast<int64_t>(taps.count()) * channels; }

  struct Pixel {
    const T* image;
    int y, x;
  };
  __device__ Pixel pixel(int64_t index) const {
    const GridPixel p(taps, index);
    return {data + p.image * height * width * pixel_stride, p.y, p.x};
  }

  struct Tap {
    int row, column, channel;
  };
  __device__ Tap tap(int n) const {
    const int place = n / channels;
    return {place / taps.horizontal.taps, place % taps.horizontal.taps, n % channels};
  }

  __device__ void advance(Tap& tap) const {
    if (++tap.channel < channels) return;
    tap.channel = 0;
    if (++tap.column < taps.horizontal.taps) return;
    tap.column = 0;
    ++tap.row;
  }

  // Null where the tap reads padding.
  __device__ const T* at(const Pixel& pixel, const Tap& tap) const {
    const int row = read_place(taps.vertical, pixel.y, tap.row);
    const int column = read_place(taps.horizontal, pixel.x, tap.column);
    if (row < 0 || row >= height || column < 0 || column >= width) return nullptr;
    return pixel.image + (row * width + column) * pixel_stride + tap.channel;
  }
};

// Columns as an operand of the tensor cores. The lines of a tile are pixels: either the outer index
// (forward), and each thread's pixels are the same at every step, or the depth (gradient of the
// filters), and its tap is.
template <typename T, Major major>
struct ColumnsOperand {
  using Tile = SwizzledTile<T, major>;

  Columns<T> columns;
  bool aligned;  // Eight channels from a multiple of eight on never straddle taps.

  explicit ColumnsOperand(const Columns<T>& columns)
      : columns(columns),
        aligned(columns.channels % 8 == 0 && is_aligned(columns.data, columns.pixel_stride)) {}

  __device__ void select(int group) { columns.select(group); }

  template <int threads>
  __device__ auto fetcher(int64_t first) const {
    constexpr bool by_depth = major == Major::depth;
    using Mine = ChunkOf<Tile, threads>;
    struct Known {
      typename Columns<T>::Pixel pixels[by_depth ? Mine::count : 1];
      typename Columns<T>::Tap tap;
    };
    Known known;
    const Mine mine;
    if constexpr (by_depth) {
#pragma unroll
      for (int n = 0; n < Mine::count; ++n)
        known.pixels[n] = columns.pixel(first + mine.line + n * Mine::step);
    } else {
      known.tap = columns.tap(static_cast<int>(first) + mine.index * Tile::chunk_size);
    }
    return [=, *this](Tile& tile, int64_t k, int64_t k_end) {
      const int64_t pixel_begin = (by_depth ? first : k) + mine.line;
      const int64_t pixel_end = by_depth ? columns.pixels : k_end;
      const int begin = static_cast<int>(by_depth ? k : first) + mine.index * Tile::chunk_size;
      const int end = static_cast<int>(by_depth ? k_end : columns.size());
      const auto first_tap = by_depth ? columns.tap(begin) : known.tap;
      if (aligned) {
#pragma unroll
        for (int n = 0; n < Mine::count; ++n) {
          const int64_t p = pixel_begin + n * Mine::step;
          const auto pixel = by_depth ? known.pixels[by_depth ? n : 0] : columns.pixel(p);
          const T* source = p < pixel_end && begin < end ? columns.at(pixel, first_tap) : nullptr;
          cp_async<16>(tile.chunk(mine.line + n * Mine::step, mine.index),
                       source ? source : columns.data, source ? 16 : 0);
        }
        return;
      }
#pragma unroll 1
      for (int n = 0; n < Mine::count; ++n) {
        const int64_t p = pixel_begin + n * Mine::step;
        const auto pixel = columns.pixel(p);
        auto tap = first_tap;
        Pack<T> pack;
#pragma unroll
        for (int j = 0; j < Tile::chunk_size; ++j, columns.advance(tap)) {
          const bool exists = p < pixel_end && begin + j < end;
          const T* source = exists ? columns.at(pixel, tap) : nullptr;
          pack.values[j] = source ? *source : narrow<T>(0);
        }
        store_pack(tile.chunk(mine.line + n * Mine::step, mine.index), pack);
      }
    };
  }
};

// The same for ordinary arithmetic.
template <typename T, Major major, int outer_size>
struct StridedColumns {
  using Tile = DepthTile<T, outer_size>;

  Columns<T> columns;

  __device__ void select(int group) { columns.select(group); }

  template <int threads>
  __device__ auto fetcher(int64_t first) const {
    return [=, *this](Tile& tile, int64_t k, int64_t k_end) {
      constexpr bool by_depth = major == Major::depth;
      // Neighbouring threads take neighbours in memory: channels of a pixel.
#pragma unroll 2
      for (int n = 0; n < Tile::outer * Tile::depth / threads; ++n) {
        const int i = threadIdx.x + n * threads;
        const int o = by_depth ? i / Tile::depth : i % Tile::outer;
        const int d = by_depth ? i % Tile::depth : i / Tile::outer;
        const int64_t p = by_depth ? first + o : k + d, column = by_depth ? k + d : first + o;
        const bool exists =
            p < (by_depth ? columns.pixels : k_end) && column < (by_depth ? k_end : columns.size());
        const T* source =
            exists ? columns.at(columns.pixel(p), columns.tap(static_cast<int>(column))) : nullptr;
        cp_async<sizeof(T)>(&tile.elements[d][o], source ? source : columns.data,
                            source ? sizeof(T) : 0);
      }
    };
  }
};

// Operands: columns of images, and filters as the rows of a matrix.
template <typename T>
struct Operands {
  using Math = TensorCore<T>;
  template <Major major, int>
  using ColumnsOf = ColumnsOperand<T, major>;

  template <int>
  static MatrixOperand<T, Major::depth> filters(const ConvFilters& filters, int groups) {
    return {static_cast<const T*>(filters.data), filters.stride, filters.outs / groups};
  }
};
template <typename T>
struct SimtOperands {
  using Math = Simt<T>;
  template <Major major, int outer>
  using ColumnsOf = StridedColumns<T, major, outer>;

  template <int outer>
  static StridedOperand<T, outer> filters(const ConvFilters& filters, int groups) {
    return {static_cast<const T*>(filters.data), filters.stride, 1, filters.outs / groups};
  }
};
template <>
struct Operands<float> : SimtOperands<float> {};
template <>
struct Operands<double> : SimtOperands<double> {};

}  // namespace lamina

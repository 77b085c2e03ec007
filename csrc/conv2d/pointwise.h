#pragma once

#include "conv2d/stage.h"
#include "gemm/epilogue.h"
#include "gemm/gemm.h"

// A 1x1 convolution without padding is a product of the tensors as they lie: the pixels of the
// output, of all images, are one direction of a matrix and the channels the other. With a stride
// the input's pixels are picked while they are packed.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Pixels of the output, all images numbered through, and where they lie in the images of a tensor
// of `height` x `width`: the output itself or, `stride` apart, the input.
struct PixelGrid {
  int64_t rows, columns;  // of the output
  int64_t height, width, stride[2];

  bool dense() const { return stride[0] == 1 && stride[1] == 1; }
  int64_t pixels() const { return rows * columns; }

  // A run of pixels that lie stride[1] apart, from `first` on.
  struct Run {
    int64_t image, pixel;
    int64_t length;
  };
  Run run(int64_t first, int64_t most) const {
    const int64_t image = first / pixels(), p = first % pixels();
    if (dense()) return {image, p, min64(most, pixels() - p)};
    const int64_t row = p / columns, column = p % columns;
    return {image, row * stride[0] * width + column * stride[1], min64(most, columns - column)};
  }
  // The same pixel, numbered through all images of the tensor.
  int64_t pixel(int64_t index) const {
    if (dense()) return index;
    const Run found = run(index, 1);
    return found.image * height * width + found.pixel;
  }
};

// Loaders (pack.h) hold what they need by value: packing stores vectors, which may alias anything
// that a reference leads to.

// Vectors of channels for each pixel (channels_last).
template <class S, Activation F>
struct ChannelLoader {
  const Reader<S, F> reader;
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
template <class S, Activation F>
struct PixelLoader {
  const Reader<S, F> reader;
  const PixelGrid::Run run;
  const int64_t stride;

  LAMINA_INLINE Vector<Accumulator<S>> operator()(int64_t row, int64_t column, int count) const {
    const int64_t pixel = run.pixel + column * stride;
    const S* const source = reader.from.data + reader.from.layout.offset(run.image, row, pixel);
    __builtin_prefetch(source + ahead_bytes / sizeof(S));
    if constexpr (F == Activation::none) {
      if (stride == 2 && count == lanes<Accumulator<S>>) return load_even(source);
      if (stride != 1) return gather(source, stride, count);
    }
    return reader(run.image, row, pixel, count);
  }
};

// The runs, of at most a vector each, of a panel's or a tile's pixels.
template <class T>
struct Runs {
  int count = 0;
  int column[tile_columns<T>];
  PixelGrid::Run run[tile_columns<T>];

  Runs(const PixelGrid& grid, int64_t first, int columns) {
    for (int done = 0; done < columns; ++count) {
      const int left = columns - done, most = lanes<T> - done % lanes<T>;
      column[count] = done;
      run[count] = grid.run(first + done, left < most ? left : most);
      done += static_cast<int>(run[count].length);
    }
  }
  // Calls body(sums, column, run).
  template <class Body>
  void each(const T* tile_row, const Body& body) const {
    for (int i = 0; i < count; ++i) {
      const T* const sums = tile_row + column[i];
      const int length = static_cast<int>(run[i].length);
      body(length == lanes<T> ? load(sums) : load(sums, length), column[i], run[i]);
    }
  }
};

// Images, plain or (DERIVED) times a derivative, as an operand of the GEMM: panels along the pixels
// and depth along the channels, or the other way round. In the latter case, and with partial_sums
// [ceil(pixels / blocking.depth), channels], each packed block leaves its sums over the pixels
// there.
template <class S, bool DERIVED, bool PIXEL_PANELS>
struct ImageOperand {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;
  Source<S> source;
  PixelGrid grid;
  T* partial_sums;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if constexpr (DERIVED) {
      with_activation(source.activation, [&](auto f) {
        pack_from<WIDTH>(Reader<S, decltype(f)::value>{source}, panel, first, count, depth, depths);
      });
    } else {
      pack_from<WIDTH>(Reader<S, Activation::none>{source}, panel, first, count, depth, depths);
    }
  }

  template <int WIDTH>
  void packed(const T* panel, int64_t first, int count, int64_t depth, int depths) const {
    if constexpr (!PIXEL_PANELS) {
      if (partial_sums == nullptr) return;
      T* const sums = partial_sums + depth / blocking.depth * source.layout.channels + first;
      sum_over_depth<T, WIDTH>(panel, count, depths, sums);
    }
  }

 private:
  template <int WIDTH, Activation F>
  void pack_from(const Reader<S, F>& reader, T* panel, int64_t first, int count, int64_t depth,
                 int depths) const {
    const int64_t channels = source.layout.channels;
    if (source.layout.channels_last) {
      // Along the row, or to the next panel.
      const int64_t ahead = PIXEL_PANELS ? ahead_bytes / sizeof(S) : WIDTH;
      const ChannelLoader<S, F> loader{reader, grid, grid.dense(), ahead};
      if constexpr (PIXEL_PANELS)
        pack_transposed<T, WIDTH>(loader, panel, first, count, depth, depths);
      else
        pack_rows<T, WIDTH>(loader, panel, first, count, depth, depths, channels);
    } else if constexpr (!PIXEL_PANELS) {
      pack_runs<WIDTH>(reader, panel, first, count, depth, depths);
    } else if constexpr (WIDTH % L == 0) {
      const PixelGrid::Run run = grid.run(first, count);
      if (grid.dense() && run.length == WIDTH)
        pack_pixels<WIDTH>(reader, run, panel, depth, depths);
      else
        pack_joined<WIDTH>(reader, panel, first, count, depth, depths);
    }
  }

  // Pixels side by side in one image. The caches are asked for the next panel.
  template <int WIDTH, Activation F>
  void pack_pixels(Reader<S, F> reader, PixelGrid::Run run, T* panel, int64_t depth,
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
  template <int WIDTH, Activation F>
  void pack_joined(Reader<S, F> reader, T* panel, int64_t first, int count, int64_t depth,
                   int depths) const {
    const Runs<T> runs(grid, first, count);
    const int64_t stride = grid.stride[1];
    T joined[WIDTH + L];
    for (int d = 0; d < depths; ++d, panel += WIDTH) {
      for (int i = 0; i < runs.count; ++i) {
        const PixelLoader<S, F> loader{reader, runs.run[i], stride};
        store(joined + runs.column[i], loader(depth + d, 0, static_cast<int>(runs.run[i].length)));
      }
      store(joined + count, Vector<T>{});
#pragma GCC unroll 4
      for (int base = 0; base < WIDTH; base += L)
        store(panel + base, base < count ? load(joined + base) : Vector<T>{});
    }
  }

  template <int WIDTH, Activation F>
  void pack_runs(Reader<S, F> reader, T* panel, int64_t first, int count, int64_t depth,
                 int depths) const {
    for (int64_t done = 0; done < depths;) {
      const PixelGrid::Run run = grid.run(depth + done, depths - done);
      pack_transposed<T, WIDTH>(PixelLoader<S, F>{reader, run, grid.stride[1]},
                                panel + done * WIDTH, first, count, 0,
                                static_cast<int>(run.length));
      done += run.length;
    }
  }
};

// The epilogue: finished tiles become output, through bias, residual and activation.
template <class S>
struct FinishTile {
  using T = Accumulator<S>;
  const Finish<S>& to;
  const PixelGrid& grid;

  void prefetch(int64_t row, int rows, int64_t column) const {
    const Layout& layout = to.layout;
    if (layout.channels_last)
      return prefetch_rows<T>(to.output, layout.channels, row, rows, column);
    const PixelGrid::Run run = grid.run(column, 1);
    prefetch_rows<T>(to.output + layout.offset(run.image, row, run.pixel), layout.pixels, 0, rows,
                     0);
  }

  void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const {
    with_activation(to.activation, [&](auto f) {
      constexpr Activation F = decltype(f)::value;
      if (to.layout.channels_last)
        by_pixel<F>(tile, row, rows, column, columns);
      else
        by_channel<F>(tile, row, rows, column, columns);
    });
  }

 private:
  template <Activation F>
  void by_pixel(const T* tile, int64_t pixel, int rows, int64_t channel, int columns) const {
    const Finisher<S, F> finisher{to};
    const S* const bias = finisher.to.bias;
    int64_t offset = finisher.to.layout.offset(0, channel, pixel);
    for (int i = 0; i < rows; ++i, tile += tile_columns<T>, offset += finisher.to.layout.channels) {
      uint32_t bits = 0;
      each_vector(tile, columns, [&](Vector<T> z, int j, int count) {
        const S* const shift = bias + channel + j;
        if (bias != nullptr) z += count == lanes<T> ? load(shift) : load(shift, count);
        bits |= finisher.put(z, offset + j, count) << j;
      });
      store_bits(pixel + i, channel, bits, columns);
    }
  }

  template <Activation F>
  void by_channel(const T* tile, int64_t channel, int rows, int64_t pixel, int columns) const {
    const Finisher<S, F> finisher{to};
    const PixelGrid::Run whole = grid.run(pixel, columns);
    const Runs<T> runs(grid, pixel, whole.length == columns ? 0 : columns);
    for (int i = 0; i < rows; ++i, tile += tile_columns<T>) {
      const Vector<T> bias =
          Vector<T>{} + (to.bias != nullptr ? load(to.bias + channel + i, 1)[0] : 0);
      uint32_t bits = 0;
      if (runs.count == 0) {
        const int64_t offset = finisher.to.layout.offset(whole.image, channel + i, whole.pixel);
        each_vector(tile, columns, [&](Vector<T> z, int j, int count) {
          bits |= finisher.put(z + bias, offset + j, count) << j;
        });
      } else {
        runs.each(tile, [&](Vector<T> z, int j, const PixelGrid::Run& run) {
          const int64_t offset = finisher.to.layout.offset(run.image, channel + i, run.pixel);
          bits |= finisher.put(z + bias, offset, static_cast<int>(run.length)) << j;
        });
      }
      store_bits(channel + i, pixel, bits, columns);
    }
  }

  // Tiles begin at multiples of 8: no other writes these bytes.
  void store_bits(int64_t row, int64_t first, uint32_t bits, int count) const {
    if (to.mask == nullptr) return;
    uint8_t* const target = to.mask + row * to.mask_stride + first / 8;
    for (int byte = 0; byte * 8 < count; ++byte)
      target[byte] = static_cast<uint8_t>(bits >> (8 * byte));
  }
};

// The epilogue for the gradient of an input of which a stride left pixels out: zeros go there.
template <class S>
struct SpreadTile {
  using T = Accumulator<S>;
  S* target;
  Layout layout;
  const PixelGrid& grid;

  void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const {
    if (layout.channels_last) {
      for (int i = 0; i < rows; ++i) {
        const PixelGrid::Run run = grid.run(row + i, 1);
        each_vector(tile + i * tile_columns<T>, columns, [&](Vector<T> sum, int j, int count) {
          spread_channels(sum, run, column + j, count);
        });
      }
      return;
    }
    const Runs<T> runs(grid, column, columns);
    for (int i = 0; i < rows; ++i)
      runs.each(tile + i * tile_columns<T>, [&](Vector<T> sums, int, const PixelGrid::Run& run) {
        spread_pixels(sums, run, row + i);
      });
  }

 private:
  // A pixel goes with those below and to the right of it, up to the next.
  int64_t rows(int64_t y) const { return min64(grid.stride[0], grid.height - y); }
  int64_t columns(int64_t x, int64_t count) const {
    return min64(count * grid.stride[1], grid.width - x);
  }

  void spread_channels(Vector<T> sums, const PixelGrid::Run& run, int64_t channel,
                       int count) const {
    const int64_t y = run.pixel / grid.width, x = run.pixel % grid.width;
    for (int64_t dy = 0; dy < rows(y); ++dy) {
      for (int64_t dx = 0; dx < columns(x, 1); ++dx) {
        const int64_t pixel = run.pixel + dy * grid.width + dx;
        store_lanes<T>(target + layout.offset(run.image, channel, pixel),
                       dy == 0 && dx == 0 ? sums : Vector<T>{}, count);
      }
    }
  }

  void spread_pixels(Vector<T> sums, const PixelGrid::Run& run, int64_t channel) const {
    const int64_t y = run.pixel / grid.width, x = run.pixel % grid.width;
    S* const line = target + layout.offset(run.image, channel, run.pixel);
    const int64_t length = columns(x, run.length);
    for (int64_t dy = 1; dy < rows(y); ++dy) zero(line + dy * grid.width, length);
    if (grid.stride[1] == 2 && length == 2 * lanes<T>) {
      store_spread(line, sums);
      return;
    }
    S values[lanes<T>];
    store(values, sums);
    zero(line, length);
    for (int64_t p = 0; p < run.length; ++p) line[p * grid.stride[1]] = values[p];
  }

  static void zero(S* line, int64_t length) {
    int64_t p = 0;
    for (; p + lanes<T> <= length; p += lanes<T>) store(line + p, Vector<T>{});
    for (; p < length; ++p) line[p] = S{};
  }
  // A zero after each element.
  static void store_spread(S* line, Vector<T> sums) {
    constexpr int L = lanes<T>;
    Mask<T> low{}, high{};
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      low[i] = i % 2 == 0 ? i / 2 : L;
      high[i] = i % 2 == 0 ? L / 2 + i / 2 : L;
    }
    store(line, __builtin_shuffle(sums, Vector<T>{}, low));
    store(line + L, __builtin_shuffle(sums, Vector<T>{}, high));
  }
};

inline bool is_pointwise(const Conv2dShape& shape) {
  return shape.kernel[0] == 1 && shape.kernel[1] == 1 && shape.padding[0] == 0 &&
         shape.padding[1] == 0 && shape.groups == 1;
}

inline PixelGrid input_grid(const Conv2dShape& shape) {
  return {shape.out_height,
          shape.out_width,
          shape.height,
          shape.width,
          {shape.stride[0], shape.stride[1]}};
}
inline PixelGrid output_grid(const Conv2dShape& shape) {
  return {shape.out_height, shape.out_width, shape.out_height, shape.out_width, {1, 1}};
}

// target[channel of `targets`] for every pixel = the sum over `depth` channels of the source.
template <class S, class Images, class Epilogue>
void multiply_pixels(const Conv2dShape& shape, const Images& source,
                     const Matrix<Accumulator<S>, S>& weight, int64_t depth,
                     const Epilogue& epilogue, const Parallel& parallel) {
  using T = Accumulator<S>;
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  if (shape.channels_last)
    gemm<T>(pixels, weight.extent, depth, source, weight, epilogue, parallel);
  else
    gemm<T>(weight.extent, pixels, depth, weight, source, epilogue, parallel);
}

template <class S>
void pointwise_forward(const Conv2dShape& shape, const Source<S>& input, const S* weight,
                       const Finish<S>& to, const Parallel& parallel) {
  const PixelGrid grid = output_grid(shape);
  multiply_pixels<S>(shape, ImageOperand<S, false, true>{input, input_grid(shape), nullptr},
                     {weight, shape.channels, 1, shape.outs}, shape.channels,
                     FinishTile<S>{to, grid}, parallel);
}

template <class S>
void pointwise_grad_input(const Conv2dShape& shape, const Source<S>& gradient, const S* weight,
                          const Finish<S>& to, const Parallel& parallel) {
  const PixelGrid grid = input_grid(shape);
  const ImageOperand<S, true, true> source{gradient, output_grid(shape), nullptr};
  const Matrix<Accumulator<S>, S> transposed{weight, 1, shape.channels, shape.channels};
  if (grid.dense())
    multiply_pixels<S>(shape, source, transposed, shape.outs, FinishTile<S>{to, grid}, parallel);
  else
    multiply_pixels<S>(shape, source, transposed, shape.outs,
                       SpreadTile<S>{to.output, to.layout, grid}, parallel);
}

// The gradients of weight and bias, either of which may be null: dZ times the matrix [pixels,
// columns] that the weight was multiplied with.
template <class S, class Columns>
void multiply_gradient(const Conv2dShape& shape, const Source<S>& gradient, const Columns& matrix,
                       int64_t columns, Accumulator<S>* grad_weight, S* grad_bias,
                       const Parallel& parallel) {
  using T = Accumulator<S>;
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  const int64_t blocks = ceil_div(pixels, blocking.depth);
  T* const sums = grad_bias != nullptr ? new T[blocks * shape.outs] : nullptr;
  const ImageOperand<S, true, false> dz{gradient, output_grid(shape), sums};
  if (grad_weight != nullptr)
    gemm<T>(shape.outs, columns, pixels, dz, matrix, StoreRows<T, T>{grad_weight, columns},
            parallel);
  if (grad_bias != nullptr) {
    if (grad_weight == nullptr || columns == 0) sum_packed<T>(dz, shape.outs, pixels, parallel);
    add_partial_sums(sums, blocks, shape.outs, grad_bias);
    delete[] sums;
  }
}

template <class S>
void pointwise_grad_weight(const Conv2dShape& shape, const Source<S>& gradient,
                           const Source<S>& input, Accumulator<S>* grad_weight, S* grad_bias,
                           const Parallel& parallel) {
  multiply_gradient(shape, gradient,
                    ImageOperand<S, false, false>{input, input_grid(shape), nullptr},
                    shape.channels, grad_weight, grad_bias, parallel);
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

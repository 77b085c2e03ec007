#include "common/activation.cuh"
#include "common/cuda_types.cuh"
#include "common/gemm.cuh"
#include "common/launch.h"
#include "conv2d/conv2d_cuda.h"
#include "linear/linear_cuda.h"

namespace lamina {
namespace {

constexpr int block_threads = 256;

unsigned blocks_for(int64_t work) {
  return static_cast<unsigned>(ceil_div<int64_t>(work, block_threads));
}

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

// Bias, residual and activation. In channels_last, rows are pixels and columns are channels;
// otherwise the other way round, and a row of pixels is cut into its images in memory. The filters'
// gradient takes it too, as images of one row.
template <typename T>
struct ConvEpilogue {
  using Number = accumulator_t<T>;

  ConvTaps taps;
  bool channels_last, dense;
  int64_t columns, channels, image_pixels;  // of all groups
  int64_t group_rows, group_columns;
  T* output;
  const T *bias, *residual;
  Activation activation;
  Number parameter;
  uint8_t* mask;
  T* preactivation;
  bool whole;  // Octets are contiguous and aligned.
  int64_t first_row = 0, first_column = 0;

  // `rows` and `columns` are those of one group.
  ConvEpilogue(const ConvOutputs& outputs, const ConvTaps& taps, int64_t rows, int64_t columns,
               int groups)
      : taps(taps),
        channels_last(outputs.channels_last),
        dense(taps.dense()),
        columns(channels_last ? columns * groups : columns),
        channels(channels_last ? columns * groups : rows * groups),
        image_pixels(taps.vertical.size * taps.horizontal.size),
        group_rows(channels_last ? 0 : rows),
        group_columns(channels_last ? columns : 0),
        output(static_cast<T*>(outputs.output)),
        bias(static_cast<const T*>(outputs.bias)),
        residual(static_cast<const T*>(outputs.residual)),
        activation(outputs.activation),
        parameter(static_cast<Number>(outputs.parameter)),
        mask(outputs.mask),
        preactivation(static_cast<T*>(outputs.preactivation)) {
    const int64_t run = channels_last ? this->columns : image_pixels;
    whole = is_aligned(output, run) && is_aligned(residual, run) &&
            is_aligned(preactivation, run) && run % octet == 0 && group_columns % octet == 0 &&
            (channels_last || dense);
  }

  __device__ void select(int group) {
    first_row = group * group_rows;
    first_column = group * group_columns;
  }

  __device__ int64_t offset(int64_t row, int64_t column) const {
    const int64_t pixel = channels_last ? row : column;
    if (channels_last && dense) return row * columns + column;
    int64_t image, place;
    if (dense) {
      const auto run = static_cast<unsigned>(image_pixels);
      image = static_cast<unsigned>(pixel) / run;
      place = static_cast<unsigned>(pixel) % run;
    } else {
      const GridPixel p(taps, pixel);
      const ConvAxis &vertical = taps.vertical, &horizontal = taps.horizontal;
      image = p.image;
      place = (vertical.first + p.y * vertical.stride) * horizontal.size + horizontal.first +
              p.x * horizontal.stride;
    }
    if (channels_last) return (image * image_pixels + place) * columns + column;
    return (image * channels + row) * image_pixels + place;
  }

  __device__ void load(const T* from, int64_t row, int64_t column, int count,
                       Number (&values)[octet]) const {
    if (whole) return load_octet(from + offset(row, column), 1, count, true, values);
#pragma unroll
    for (int i = 0; i < octet; ++i)
      values[i] = i < count ? widen(from[offset(row, column + i)]) : Number(0);
  }
  __device__ void store(T* to, int64_t row, int64_t column, int count,
                        const Number (&values)[octet]) const {
    if (whole) return store_octet(to + offset(row, column), count, true, values);
#pragma unroll
    for (int i = 0; i < octet; ++i)
      if (i < count) to[offset(row, column + i)] = narrow<T>(values[i]);
  }

  __device__ void operator()(int64_t group_row, int64_t group_column, Number (&z)[octet]) const {
    const int64_t row = first_row + group_row, column = first_column + group_column;
    const int64_t left = group_columns ? group_columns - group_column : columns - column;
    const int count = left < octet ? static_cast<int>(left) : octet;
    if (bias) {
#pragma unroll
      for (int i = 0; i < octet; ++i)
        if (i < count) z[i] += widen(bias[channels_last ? column + i : row]);
    }
    if (residual) {
      Number added[octet];
      load(residual, row, column, count, added);
#pragma unroll
      for (int i = 0; i < octet; ++i) z[i] += added[i];
    }
    if (mask) {
      unsigned kept = 0;
#pragma unroll
      for (int i = 0; i < octet; ++i)
        if (i < count && passes(activation, parameter, z[i])) kept |= 1u << i;
      mask[row * ceil_div<int64_t>(columns, octet) + column / octet] = static_cast<uint8_t>(kept);
    }
    if (preactivation) store(preactivation, row, column, count, z);
    activate(activation, parameter, z);
    store(output, row, column, count, z);
  }
};

struct FilterStrides {
  int64_t out, in, row, column;
};

// Element `index` of the filters is weight[k, c, r, s]; false where the filters are padded.
struct FilterElement {
  int64_t offset;
  bool exists;

  __device__ FilterElement(int64_t index, const ConvFilters& filters, const ConvTaps& taps,
                           int64_t groups, bool transposed, const FilterStrides& strides) {
    const int64_t out = index / filters.stride, n = index % filters.stride;
    const int64_t in = n % filters.ins, tap = n / filters.ins;
    const int64_t group = out / (filters.outs / groups);
    const int64_t k = transposed ? group * filters.ins + in : out;
    const int64_t c = transposed ? out % (filters.outs / groups) : in;
    const ConvAxis &vertical = taps.vertical, &horizontal = taps.horizontal;
    const int64_t r = vertical.first_tap + tap / horizontal.taps * vertical.tap_stride;
    const int64_t s = horizontal.first_tap + tap % horizontal.taps * horizontal.tap_stride;
    exists = tap < taps.count();
    offset = k * strides.out + c * strides.in + r * strides.row + s * strides.column;
  }
};

template <typename T>
__global__ void __launch_bounds__(block_threads)
    conv_filters_kernel(const T* weight, FilterStrides strides, ConvTaps taps, int groups,
                        bool transposed, ConvFilters filters) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (index >= filters.outs * filters.stride) return;
  const FilterElement element(index, filters, taps, groups, transposed, strides);
  static_cast<T*>(filters.data)[index] = element.exists ? weight[element.offset] : narrow<T>(0);
}

template <typename T>
__global__ void __launch_bounds__(block_threads)
    conv_filters_back_kernel(ConvFilters filters, ConvTaps taps, T* weight, FilterStrides strides) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (index >= filters.outs * filters.stride) return;
  const FilterElement element(index, filters, taps, 1, false, strides);
  if (element.exists) weight[element.offset] = static_cast<const T*>(filters.data)[index];
}

// Narrow groups: each thread makes one octet of the output, as the epilogue wants it.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    conv_narrow_kernel(Columns<T> columns, ConvFilters filters, int64_t rows, int64_t row_octets,
                       ConvEpilogue<T> epilogue) {
  using Number = accumulator_t<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  const int64_t row = index / row_octets, column = index % row_octets * octet;
  if (row >= rows) return;
  const int64_t group_outs = filters.outs / columns.groups;
  const int64_t limit = epilogue.channels_last ? filters.outs : columns.pixels;
  Number sums[octet];
#pragma unroll
  for (int i = 0; i < octet; ++i) {
    sums[i] = 0;
    if (column + i >= limit) continue;
    const int64_t out = epilogue.channels_last ? column + i : row;
    const auto pixel = columns.pixel(epilogue.channels_last ? row : column + i);
    const int64_t first_channel = out / group_outs * columns.channels;
    const T* filter = static_cast<const T*>(filters.data) + out * filters.stride;
    for (int n = 0; n < columns.size(); ++n)
      if (const T* source = columns.at(pixel, columns.tap(n)))
        sums[i] += widen(source[first_channel]) * widen(filter[n]);
  }
  epilogue(row, column, sums);
}

// A thread takes one element of the filters, neighbours neighbouring outs, and a run of pixels.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    conv_narrow_grad_filters_kernel(Columns<T> columns, const T* grad_z, ConvFilters filters,
                                    int64_t run, accumulator_t<T>* partial) {
  using Number = accumulator_t<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  const int64_t out = index % filters.outs, n = index / filters.outs;
  if (n >= columns.size()) return;
  const int64_t group_outs = filters.outs / columns.groups;
  const int64_t first_channel = out / group_outs * columns.channels;
  const int64_t begin = blockIdx.y * run;
  const int64_t end = begin + run < columns.pixels ? begin + run : columns.pixels;
  Number sum = 0;
  for (int64_t p = begin; p < end; ++p)
    if (const T* source = columns.at(columns.pixel(p), columns.tap(static_cast<int>(n))))
      sum += widen(source[first_channel]) * widen(grad_z[p * filters.outs + out]);
  partial[(blockIdx.y * filters.outs + out) * filters.stride + n] = sum;
}

constexpr int64_t most_runs = 256;
int64_t narrow_run(int64_t pixels) {
  const int64_t run = ceil_div<int64_t>(pixels, most_runs);
  return run < 64 ? 64 : run;
}
int64_t narrow_runs(int64_t pixels) {
  return pixels == 0 ? 1 : ceil_div(pixels, narrow_run(pixels));
}

template <typename T>
struct BlockSums {
  accumulator_t<T> sums[block_threads];
};

// A block takes one channel and a run of pixels.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    conv_grad_z_kernel(int64_t channels, int64_t image_pixels, int64_t pixels, int64_t run,
                       const T* grad, const uint8_t* mask, const T* saved, Activation activation,
                       accumulator_t<T> parameter, T* grad_z, accumulator_t<T>* partial) {
  using Number = accumulator_t<T>;
  const int64_t channel = blockIdx.x % channels, part = blockIdx.x / channels;
  const int64_t begin = part * run, end = begin + run < pixels ? begin + run : pixels;
  Number sum = 0;
  for (int64_t p = begin + threadIdx.x; p < end; p += block_threads) {
    const int64_t at = (p / image_pixels * channels + channel) * image_pixels + p % image_pixels;
    Number value[1] = {widen(grad[at])};
    const Number from[1] = {saved ? widen(saved[at]) : Number(0)};
    const unsigned kept = mask ? mask[channel * ceil_div<int64_t>(pixels, 8) + p / 8] >> p % 8 : 0;
    differentiate(activation, parameter, kept, from, value);
    if (grad_z) grad_z[at] = narrow<T>(value[0]);
    sum += value[0];
  }
  if (!partial) return;
  auto& shared = shared_memory<BlockSums<T>>();
  shared.sums[threadIdx.x] = sum;
  for (unsigned step = block_threads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) shared.sums[threadIdx.x] += shared.sums[threadIdx.x + step];
  }
  if (threadIdx.x == 0) partial[part * channels + channel] = shared.sums[0];
}

int64_t grad_z_run(int64_t pixels) {
  const int64_t run = ceil_div<int64_t>(pixels, 128);
  return run < 2048 ? 2048 : run;
}
int64_t grad_z_runs(int64_t pixels) {
  return pixels == 0 ? 1 : ceil_div(pixels, grad_z_run(pixels));
}

int64_t grid_pixels(const ConvImages& images, const ConvTaps& taps) {
  return images.count * taps.pixels();
}

// Narrow groups, such as those of a depthwise convolution, would leave most of a GEMM's tiles
// empty (and in channels_last their bits would share bytes of the mask): they go without.
bool is_narrow(const ConvFilters& filters, int groups) {
  const int64_t outs = filters.outs / groups;
  return groups > 1 && (outs % octet || outs < 32 || filters.ins < 16);
}

GemmPlan plan_conv(const ConvImages& images, const ConvTaps& taps, const ConvFilters& filters,
                   int groups, bool channels_last) {
  const int64_t pixels = grid_pixels(images, taps), outs = filters.outs / groups;
  const int64_t depth = taps.count() * filters.ins;
  return channels_last ? plan_gemm(pixels, outs, depth, groups)
                       : plan_gemm(outs, pixels, depth, groups);
}
GemmPlan plan_grad_filters(const ConvImages& images, const ConvTaps& taps,
                           const ConvFilters& filters, int groups) {
  return plan_gemm(filters.outs / groups, taps.count() * filters.ins, grid_pixels(images, taps),
                   groups);
}

// Each position reads itself.
ConvAxis plain_axis(int64_t size) { return {1, 1, 0, 1, size, 0, 1, 0, 1, size}; }

FilterStrides filter_strides(const int64_t (&strides)[4]) {
  return {strides[0], strides[1], strides[2], strides[3]};
}

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

}  // namespace

void launch_conv_filters(FloatType type, const void* weight, const int64_t (&strides)[4],
                         const ConvTaps& taps, int groups, bool transposed,
                         const ConvFilters& filters, cudaStream_t stream) {
  if (filters.outs * filters.stride == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(conv_filters_kernel<T>, blocks_for(filters.outs * filters.stride), block_threads,
                  0, stream, static_cast<const T*>(weight), filter_strides(strides), taps, groups,
                  transposed, filters);
  });
}

void launch_conv_filters_back(FloatType type, const ConvFilters& filters, const ConvTaps& taps,
                              void* weight, const int64_t (&strides)[4], cudaStream_t stream) {
  if (filters.outs * filters.stride == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(conv_filters_back_kernel<T>, blocks_for(filters.outs * filters.stride),
                  block_threads, 0, stream, filters, taps, static_cast<T*>(weight),
                  filter_strides(strides));
  });
}

int64_t conv_partial_sums(const ConvImages& images, const ConvTaps& taps,
                          const ConvFilters& filters, int groups, bool channels_last) {
  if (is_narrow(filters, groups)) return 0;
  return plan_conv(images, taps, filters, groups, channels_last).partial_sums();
}

void launch_conv(FloatType type, const ConvImages& images, const ConvTaps& taps,
                 const ConvFilters& filters, int groups, const ConvOutputs& outputs, void* partial,
                 cudaStream_t stream) {
  if (grid_pixels(images, taps) * filters.outs == 0) return;
  const GemmPlan plan = plan_conv(images, taps, filters, groups, outputs.channels_last);
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Math = typename Operands<T>::Math;
    using ByPixel = typename Operands<T>::template ColumnsOf<Major::depth, Math::rows>;
    using ByOut = typename Operands<T>::template ColumnsOf<Major::depth, Math::columns>;
    const Columns<T> columns(images, taps, groups);
    auto* sums = static_cast<accumulator_t<T>*>(partial);
    if (is_narrow(filters, groups)) {
      const int64_t rows = outputs.channels_last ? columns.pixels : filters.outs;
      const int64_t across = outputs.channels_last ? filters.outs : columns.pixels;
      const int64_t row_octets = ceil_div<int64_t>(across, octet);
      LAMINA_LAUNCH(conv_narrow_kernel<T>, blocks_for(rows * row_octets), block_threads, 0, stream,
                    columns, filters, rows, row_octets,
                    ConvEpilogue<T>(outputs, taps, rows, across, 1));
      return;
    }
    const ConvEpilogue<T> epilogue(outputs, taps, plan.rows, plan.columns, groups);
    if (outputs.channels_last)
      launch_gemm<Math>(plan, ByPixel{columns},
                        Operands<T>::template filters<Math::columns>(filters, groups), epilogue,
                        sums, stream);
    else
      launch_gemm<Math>(plan, Operands<T>::template filters<Math::rows>(filters, groups),
                        ByOut{columns}, epilogue, sums, stream);
  });
}

int64_t conv_grad_filters_partial_sums(const ConvImages& images, const ConvTaps& taps,
                                       const ConvFilters& filters, int groups) {
  if (is_narrow(filters, groups))
    return narrow_runs(grid_pixels(images, taps)) * filters.outs * filters.stride;
  return plan_grad_filters(images, taps, filters, groups).partial_sums();
}

void launch_conv_grad_filters(FloatType type, const ConvImages& images, const ConvImages& grad_z,
                              const ConvTaps& taps, const ConvFilters& filters, int groups,
                              void* partial, cudaStream_t stream) {
  if (filters.outs * taps.count() * filters.ins == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Math = typename Operands<T>::Math;
    using ByOut = typename Operands<T>::template ColumnsOf<Major::outer, Math::rows>;
    using ByTap = typename Operands<T>::template ColumnsOf<Major::outer, Math::columns>;
    const Columns<T> columns(images, taps, groups);
    const ConvOutputs plain{filters.data, nullptr, nullptr, Activation::none, 0,
                            nullptr,      nullptr, false};
    auto* sums = static_cast<accumulator_t<T>*>(partial);
    if (is_narrow(filters, groups)) {
      const int64_t runs = narrow_runs(columns.pixels);
      const dim3 blocks(blocks_for(columns.size() * filters.outs), static_cast<unsigned>(runs));
      LAMINA_LAUNCH(conv_narrow_grad_filters_kernel<T>, blocks, block_threads, 0, stream, columns,
                    static_cast<const T*>(grad_z.data), filters, narrow_run(columns.pixels), sums);
      launch_column_sums(type, partial, runs, filters.outs * filters.stride, filters.data, stream);
      return;
    }
    const GemmPlan plan = plan_grad_filters(images, taps, filters, groups);
    // dZ read through a single tap is a matrix [pixels, outs]; the filters are one row of results.
    const ConvTaps single{plain_axis(taps.vertical.grid), plain_axis(taps.horizontal.grid)};
    const ConvTaps flat{plain_axis(1), plain_axis(plan.columns)};
    launch_gemm<Math>(plan, ByOut{Columns<T>(grad_z, single, groups)}, ByTap{columns},
                      ConvEpilogue<T>(plain, flat, plan.rows, plan.columns, groups), sums, stream);
  });
}

int64_t conv_grad_z_partial_sums(const ConvGradZ& args) {
  return grad_z_runs(args.images * args.pixels) * args.channels;
}

void launch_conv_grad_z(FloatType type, const ConvGradZ& args, cudaStream_t stream) {
  if (args.channels == 0) return;
  const int64_t pixels = args.images * args.pixels, runs = grad_z_runs(pixels);
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Number = accumulator_t<T>;
    const bool by_mask = saves_mask(args.activation);
    auto* partial = args.grad_bias ? static_cast<Number*>(args.partial) : nullptr;
    LAMINA_LAUNCH(conv_grad_z_kernel<T>, static_cast<unsigned>(runs * args.channels), block_threads,
                  sizeof(BlockSums<T>), stream, args.channels, args.pixels, pixels,
                  grad_z_run(pixels), static_cast<const T*>(args.grad),
                  by_mask ? static_cast<const uint8_t*>(args.saved) : nullptr,
                  by_mask ? nullptr : static_cast<const T*>(args.saved), args.activation,
                  static_cast<Number>(args.parameter), static_cast<T*>(args.grad_z), partial);
    if (partial) launch_column_sums(type, partial, runs, args.channels, args.grad_bias, stream);
  });
}

}  // namespace lamina

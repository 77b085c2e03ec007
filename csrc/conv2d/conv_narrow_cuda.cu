#include "conv2d/conv_columns.cuh"
#include "conv2d/conv_epilogue.cuh"
#include "conv2d/conv_grid.cuh"
#include "conv2d/conv_narrow.h"
#include "linear/linear_cuda.h"

namespace lamina {
namespace {

// Each thread makes one octet of the output, as the epilogue wants it.
template <typename T>
__global__ void __launch_bounds__(conv_threads)
    conv_narrow_kernel(Columns<T> columns, ConvFilters filters, int64_t rows, int64_t row_octets,
                       ConvEpilogue<T> epilogue) {
  using Number = accumulator_t<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * conv_threads + threadIdx.x;
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
__global__ void __launch_bounds__(conv_threads)
    conv_narrow_grad_filters_kernel(Columns<T> columns, const T* grad_z, ConvFilters filters,
                                    int64_t run, accumulator_t<T>* partial) {
  using Number = accumulator_t<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * conv_threads + threadIdx.x;
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

}  // namespace

bool is_narrow(const ConvFilters& filters, int groups) {
  const int64_t outs = filters.outs / groups;
  return groups > 1 && (outs % octet || outs < 32 || filters.ins < 16);
}

void launch_conv_narrow(FloatType type, const ConvImages& images, const ConvTaps& taps,
                        const ConvFilters& filters, int groups, const ConvOutputs& outputs,
                        cudaStream_t stream) {
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    const Columns<T> columns(images, taps, groups);
    const int64_t rows = outputs.channels_last ? columns.pixels : filters.outs;
    const int64_t across = outputs.channels_last ? filters.outs : columns.pixels;
    const int64_t row_octets = ceil_div<int64_t>(across, octet);
    LAMINA_LAUNCH(conv_narrow_kernel<T>, conv_blocks(rows * row_octets), conv_threads, 0, stream,
                  columns, filters, rows, row_octets,
                  ConvEpilogue<T>(outputs, taps, rows, across, 1));
  });
}

int64_t conv_narrow_partial_sums(const ConvImages& images, const ConvTaps& taps,
                                 const ConvFilters& filters) {
  return narrow_runs(grid_pixels(images, taps)) * filters.outs * filters.stride;
}

void launch_conv_narrow_grad_filters(FloatType type, const ConvImages& images,
                                     const ConvImages& grad_z, const ConvTaps& taps,
                                     const ConvFilters& filters, int groups, void* partial,
                                     cudaStream_t stream) {
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    const Columns<T> columns(images, taps, groups);
    const int64_t runs = narrow_runs(columns.pixels);
    const dim3 blocks(conv_blocks(columns.size() * filters.outs), static_cast<unsigned>(runs));
    LAMINA_LAUNCH(conv_narrow_grad_filters_kernel<T>, blocks, conv_threads, 0, stream, columns,
                  static_cast<const T*>(grad_z.data), filters, narrow_run(columns.pixels),
                  static_cast<accumulator_t<T>*>(partial));
    launch_column_sums(type, partial, runs, filters.outs * filters.stride, filters.data, stream);
  });
}

}  // namespace lamina

#include "conv2d/conv_columns.cuh"
#include "conv2d/conv_epilogue.cuh"
#include "conv2d/conv_grid.cuh"

namespace lamina {
namespace {

// Narrow groups: each thread makes one octet of the output, as the epilogue wants it.
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

GemmPlan plan_conv(const ConvImages& images, const ConvTaps& taps, const ConvFilters& filters,
                   int groups, bool channels_last) {
  const int64_t pixels = grid_pixels(images, taps), outs = filters.outs / groups;
  const int64_t depth = taps.count() * filters.ins;
  return channels_last ? plan_gemm(pixels, outs, depth, groups)
                       : plan_gemm(outs, pixels, depth, groups);
}

}  // namespace

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
      LAMINA_LAUNCH(conv_narrow_kernel<T>, conv_blocks(rows * row_octets), conv_threads, 0, stream,
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

}  // namespace lamina

#include "conv2d/conv_columns.cuh"
#include "conv2d/conv_epilogue.cuh"
#include "conv2d/conv_grid.cuh"
#include "linear/linear_cuda.h"

namespace lamina {
namespace {

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

GemmPlan plan_grad_filters(const ConvImages& images, const ConvTaps& taps,
                           const ConvFilters& filters, int groups) {
  return plan_gemm(filters.outs / groups, taps.count() * filters.ins, grid_pixels(images, taps),
                   groups);
}

// Each position reads itself.
ConvAxis plain_axis(int64_t size) { return {1, 1, 0, 1, size, 0, 1, 0, 1, size}; }

}  // namespace

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
      const dim3 blocks(conv_blocks(columns.size() * filters.outs), static_cast<unsigned>(runs));
      LAMINA_LAUNCH(conv_narrow_grad_filters_kernel<T>, blocks, conv_threads, 0, stream, columns,
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

}  // namespace lamina

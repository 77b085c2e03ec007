#include "conv2d/conv_columns.cuh"
#include "conv2d/conv_epilogue.cuh"
#include "conv2d/conv_grid.cuh"
#include "conv2d/conv_narrow.h"

namespace lamina {
namespace {

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
  if (is_narrow(filters, groups)) return conv_narrow_partial_sums(images, taps, filters);
  return plan_grad_filters(images, taps, filters, groups).partial_sums();
}

void launch_conv_grad_filters(FloatType type, const ConvImages& images, const ConvImages& grad_z,
                              const ConvTaps& taps, const ConvFilters& filters, int groups,
                              void* partial, cudaStream_t stream) {
  if (filters.outs * taps.count() * filters.ins == 0) return;
  if (is_narrow(filters, groups))
    return launch_conv_narrow_grad_filters(type, images, grad_z, taps, filters, groups, partial,
                                           stream);
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Math = typename Operands<T>::Math;
    using ByOut = typename Operands<T>::template ColumnsOf<Major::outer, Math::rows>;
    using ByTap = typename Operands<T>::template ColumnsOf<Major::outer, Math::columns>;
    const Columns<T> columns(images, taps, groups);
    const ConvOutputs plain{filters.data, nullptr, nullptr, Activation::none, 0,
                            nullptr,      nullptr, false};
    auto* sums = static_cast<accumulator_t<T>*>(partial);
    const GemmPlan plan = plan_grad_filters(images, taps, filters, groups);
    // dZ read through a single tap is a matrix [pixels, outs]; the filters are one row of results.
    const ConvTaps single{plain_axis(taps.vertical.grid), plain_axis(taps.horizontal.grid)};
    const ConvTaps flat{plain_axis(1), plain_axis(plan.columns)};
    launch_gemm<Math>(plan, ByOut{Columns<T>(grad_z, single, groups)}, ByTap{columns},
                      ConvEpilogue<T>(plain, flat, plan.rows, plan.columns, groups), sums, stream);
  });
}

}  // namespace lamina

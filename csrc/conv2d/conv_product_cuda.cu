#include "conv2d/conv_columns.cuh"
#include "conv2d/conv_epilogue.cuh"
#include "conv2d/conv_grid.cuh"
#include "conv2d/conv_narrow.h"

namespace lamina {
namespace {

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
  if (is_narrow(filters, groups))
    return launch_conv_narrow(type, images, taps, filters, groups, outputs, stream);
  const GemmPlan plan = plan_conv(images, taps, filters, groups, outputs.channels_last);
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Math = typename Operands<T>::Math;
    using ByPixel = typename Operands<T>::template ColumnsOf<Major::depth, Math::rows>;
    using ByOut = typename Operands<T>::template ColumnsOf<Major::depth, Math::columns>;
    const Columns<T> columns(images, taps, groups);
    auto* sums = static_cast<accumulator_t<T>*>(partial);
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

#pragma once

#include "conv2d/conv2d_cuda.h"

namespace lamina {

// Narrow groups, such as those of a depthwise convolution, would leave most of a GEMM's tiles
// empty (and in channels_last their bits would share bytes of the mask): they go without.
bool is_narrow(const ConvFilters& filters, int groups);

void launch_conv_narrow(FloatType type, const ConvImages& images, const ConvTaps& taps,
                        const ConvFilters& filters, int groups, const ConvOutputs& outputs,
                        cudaStream_t stream);

int64_t conv_narrow_partial_sums(const ConvImages& images, const ConvTaps& taps,
                                 const ConvFilters& filters);
void launch_conv_narrow_grad_filters(FloatType type, const ConvImages& images,
                                     const ConvImages& grad_z, const ConvTaps& taps,
                                     const ConvFilters& filters, int groups, void* partial,
                                     cudaStream_t stream);

}  // namespace lamina

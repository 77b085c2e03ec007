#pragma once

#include "conv2d/conv2d_cuda.h"

namespace lamina {

constexpr int conv_threads = 256;

inline unsigned conv_blocks(int64_t work) {
  return static_cast<unsigned>(ceil_div<int64_t>(work, conv_threads));
}

inline int64_t grid_pixels(const ConvImages& images, const ConvTaps& taps) {
  return images.count * taps.pixels();
}

// Narrow groups, such as those of a depthwise convolution, would leave most of a GEMM's tiles
// empty (and in channels_last their bits would share bytes of the mask): they go without.
inline bool is_narrow(const ConvFilters& filters, int groups) {
  const int64_t outs = filters.outs / groups;
  return groups > 1 && (outs % octet || outs < 32 || filters.ins < 16);
}

}  // namespace lamina

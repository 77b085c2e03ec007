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

}  // namespace lamina

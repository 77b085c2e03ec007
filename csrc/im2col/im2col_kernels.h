#pragma once

#include <cstdint>

#include "common/float_type.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace lamina {

// Both are contiguous: the image [planes, height, width], planes = N * C, and the columns
// [planes, kernel[0] * kernel[1], out_height * out_width].
struct Im2col {
  FloatType type;
  int64_t planes, height, width, out_height, out_width;
  int64_t kernel[2], dilation[2], padding[2], stride[2];
  void* image;
  void* columns;
};

}  // namespace lamina

LAMINA_KERNEL(void im2col(const Im2col& args, const Parallel& parallel);
              void col2im(const Im2col& args, const Parallel& parallel);)

#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/float_type.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace lamina {

struct Conv2dShape {
  FloatType type;
  bool channels_last;
  int64_t images, channels, height, width;  // input
  int64_t outs, out_height, out_width;      // output
  int64_t kernel[2], stride[2], padding[2], dilation[2], groups;
  int winograd;  // 2 or 4: F(2x2, 3x3) or F(4x4, 3x3), with stride and dilation 1 only; else 0
};

// Tensors are dense: images as Conv2dShape says, weights in the order [out, in, row, column].
struct Conv2dForward {
  Conv2dShape shape;
  const void* input;
  const void* weight;
  const void* bias;      // or null
  const void* residual;  // or null
  Activation activation;
  double parameter;
  void* output;
  uint8_t* mask;        // zeros before, see conv2d.h; or null
  void* preactivation;  // or null
};

struct Conv2dBackward {
  Conv2dShape shape;
  const void* gradient;
  const void* input;
  const void* weight;
  const void* saved;
  Activation activation;
  double parameter;
  void* grad_input;   // or null, as all that follow
  void* grad_weight;  // in the accumulators' type: double for float64, else float
  void* grad_bias;
  void* grad_residual;
};

}  // namespace lamina

LAMINA_KERNEL(void conv2d_forward(const Conv2dForward& args, const Parallel& parallel);
              void conv2d_backward(const Conv2dBackward& args, const Parallel& parallel);)

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

// A 1x1 convolution of the tensors as they lie.
inline bool is_pointwise(const Conv2dShape& shape) {
  return shape.kernel[0] == 1 && shape.kernel[1] == 1 && shape.padding[0] == 0 &&
         shape.padding[1] == 0 && shape.groups == 1;
}

// Of fewer channels than these, staged vectors (stage.h) would be mostly empty.
constexpr int64_t few_channels = 4;

inline bool has_few_channels(const Conv2dShape& shape) {
  return shape.channels <= few_channels && shape.groups == 1 && !shape.winograd;
}

}  // namespace lamina

LAMINA_KERNEL(void conv2d_forward(const Conv2dForward& args, const Parallel& parallel);
              void conv2d_backward(const Conv2dBackward& args, const Parallel& parallel);
              // Their parts, in objects of their own: pointwise, of few channels, and staged.
              void product_forward(const Conv2dForward& args, const Parallel& parallel);
              void product_grad_input(const Conv2dBackward& args, const Parallel& parallel);
              void product_grad_weight(const Conv2dBackward& args, const Parallel& parallel);
              void few_channels_forward(const Conv2dForward& args, const Parallel& parallel);
              void few_channels_grad_weight(const Conv2dBackward& args, const Parallel& parallel);
              void staged_forward(const Conv2dForward& args, const Parallel& parallel);
              void staged_grad_input(const Conv2dBackward& args, const Parallel& parallel);
              void staged_grad_weight(const Conv2dBackward& args, const Parallel& parallel);
              void store_grad_residual(const Conv2dBackward& args, const Parallel& parallel);)

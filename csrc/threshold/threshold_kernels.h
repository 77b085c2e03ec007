#pragma once

#include <cstdint>

#include "common/float_type.h"
#include "common/isa.h"

namespace lamina {

// Both walk elements [0, n) of flat arrays. In the forward pass `mask` may be null, and `output`
// may be `input`. `stream` writes past the caches, for outputs that no cache can hold.
struct ThresholdForward {
  FloatType type;
  const void* input;
  void* output;
  uint8_t* mask;
  int64_t n;
  double threshold;
  bool stream;
};

struct ThresholdBackward {
  FloatType type;
  const void* grad;
  const uint8_t* mask;
  void* grad_input;
  int64_t n;
  bool stream;
};

}  // namespace lamina

LAMINA_KERNEL(void threshold_forward(const ThresholdForward& args);)
LAMINA_KERNEL(void threshold_backward(const ThresholdBackward& args);)

#pragma once

#include "common/check.h"

// What squash.h says of its arguments, demanded; for the glue of every device.

namespace lamina {

inline void check_squash(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() > 0, "squash: input must have a dimension");
}

inline void check_squash_backward(const Tensor& grad, const Tensor& input) {
  check_squash(input);
  check_alike("squash_backward: grad", grad, input, input.sizes());
}

}  // namespace lamina

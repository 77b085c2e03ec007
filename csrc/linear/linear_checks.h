#pragma once

#include <vector>

#include "common/check.h"

// What linear.h says of its arguments, demanded; for the glue of every device.

namespace lamina {

inline void check_linear(const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(
      input.dim() > 0 && weight.dim() == 2 && input.size(input.dim() - 1) == weight.size(1),
      "linear: input must be [..., K] and weight [N, K], got ", shown(input.sizes()), " and ",
      shown(weight.sizes()));
  check_alike("linear: weight", weight, input);
}

inline void check_linear_bias(const Tensor& bias, const Tensor& input, const Tensor& weight) {
  check_alike("linear: bias", bias, input, {weight.size(0)});
}

inline void check_linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                  const Tensor& saved, Activation activation,
                                  const std::vector<bool>& needs) {
  check_linear(input, weight);
  check_needs("linear_backward", needs, 3);
  std::vector<int64_t> sizes(input.sizes().begin(), input.sizes().end());
  sizes.back() = weight.size(0);
  check_alike("linear_backward: grad", grad, input, sizes);
  if (activation == Activation::none) {
    check_nothing("linear_backward: saved", saved);
  } else if (saves_mask(activation)) {
    int64_t rows = 1;
    for (size_t d = 0; d + 1 < sizes.size(); ++d) rows *= sizes[d];
    check_mask("linear_backward: saved", saved, input, {rows, (sizes.back() + 7) / 8});
  } else {
    check_alike("linear_backward: saved", saved, input, sizes);
  }
}

}  // namespace lamina

#pragma once

#include <vector>

#include "common/check.h"
#include "conv2d/conv2d.h"

// What conv2d.h says of its arguments, demanded; for the glue of every device.

namespace lamina {

// One dimension of the windows: a pair for the vertical and the horizontal direction.
inline void check_pair(const char* name, const std::vector<int64_t>& pair, int64_t least) {
  constexpr int64_t most = (int64_t{1} << 31) - 1;  // so that sums of products stay in 64 bits
  const auto fits = [&](int64_t number) { return least <= number && number <= most; };
  STD_TORCH_CHECK(pair.size() == 2 && fits(pair[0]) && fits(pair[1]), name,
                  " must be two numbers from ", least, " to ", most, ", got ", shown(pair));
}

inline void check_conv2d(const Tensor& input, const Tensor& weight,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups) {
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 4,
                  "conv2d: input and weight must have 4 dimensions, got ", shown(input.sizes()),
                  " and ", shown(weight.sizes()));
  check_alike("conv2d: weight", weight, input);
  check_pair("conv2d: stride", stride, 1);
  check_pair("conv2d: padding", padding, 0);
  check_pair("conv2d: dilation", dilation, 1);
  STD_TORCH_CHECK(groups > 0 && input.size(1) == weight.size(1) * groups &&
                      weight.size(0) % groups == 0 && weight.size(0) > 0 && weight.size(1) > 0,
                  "conv2d: input ", shown(input.sizes()), " and weight ", shown(weight.sizes()),
                  " do not fit in ", groups, " groups");
  for (int d : {0, 1}) {
    const int64_t taps = weight.size(2 + d);
    STD_TORCH_CHECK(taps > 0 && conv_output_size(input.size(2 + d), taps, stride[d], padding[d],
                                                 dilation[d]) > 0,
                    "conv2d: the kernel is empty or larger than the padded input");
  }
}

// What the forward pass saved.
inline void check_saved(const Tensor& saved, const Tensor& input, Activation activation,
                        const std::vector<int64_t>& output_sizes, bool channels_last) {
  if (activation == Activation::none) {
    check_nothing("conv2d_backward: saved", saved);
    return;
  }
  if (!saves_mask(activation)) {
    check_alike("conv2d_backward: saved", saved, input, output_sizes);
    return;
  }
  const int64_t pixels = output_sizes[0] * output_sizes[2] * output_sizes[3];
  const int64_t rows = channels_last ? pixels : output_sizes[1];
  const int64_t bits = channels_last ? output_sizes[1] : pixels;
  check_mask("conv2d_backward: saved", saved, input, {rows, (bits + 7) / 8});
}

}  // namespace lamina

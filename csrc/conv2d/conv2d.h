#pragma once

#include <cstdint>

// output = act(conv2d(input, weight) + bias + residual), as every backend registers it.
//
// input [N, C, H, W], residual, output, grad and every gradient of theirs are channels_last where
// `channels_last` says so, else contiguous (the caller sees to it); weight [K, C/groups, R, S] is
// dense in any order and grad_weight has its strides. stride, padding and dilation are [vertical,
// horizontal]; padding is with zeros, the same on both sides. activation and parameter are those of
// linear. algorithm is "auto" or one of Python's lamina.layers.conv2d.ALGORITHMS.
//
// saved, with P = N * OH * OW pixels of the output:
//   relu, threshold, leaky_relu: uint8, one bit an element, 1 where !(z <= t), the lowest bit
//   first:
//     [P, ceil(K / 8)] if channels_last, else [K, ceil(P / 8)]; bits past the end are 0
//   gelu, gelu_tanh, silu: z, the value before the activation, in the dtype and layout of output
//   otherwise, or without `save`: uint8[0]; for tanh and sigmoid the caller passes output itself to
//     the backward pass
// needs = (input, weight, bias, residual); a gradient that is not needed is undefined.

namespace lamina {

constexpr char conv2d_forward_schema[] =
    "conv2d_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, "
    "int[] padding, int[] dilation, int groups, str activation, float parameter, str algorithm, "
    "bool channels_last, bool save) -> (Tensor, Tensor)";
constexpr char conv2d_backward_schema[] =
    "conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor saved, int[] stride, "
    "int[] padding, int[] dilation, int groups, str activation, float parameter, str algorithm, "
    "bool channels_last, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)";

// Pixels of the output along one direction.
inline int64_t conv_output_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                                int64_t dilation) {
  return (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

}  // namespace lamina

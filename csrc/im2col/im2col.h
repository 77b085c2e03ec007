#pragma once

// Columns of images (im2col) and their sum back into images (col2im), each the other's gradient.
// input [N, C, H, W] of any strides, columns [N, C * R * S, L] (any strides as an argument,
// contiguous as a result); size is [H, W].

namespace lamina {

constexpr char im2col_forward_schema[] =
    "im2col_forward(Tensor input, int[] kernel, int[] dilation, int[] padding, int[] stride) -> "
    "Tensor";
constexpr char im2col_backward_schema[] =
    "im2col_backward(Tensor grad, int[] size, int[] kernel, int[] dilation, int[] padding, int[] "
    "stride) -> Tensor";
constexpr char col2im_forward_schema[] =
    "col2im_forward(Tensor input, int[] size, int[] kernel, int[] dilation, int[] padding, int[] "
    "stride) -> Tensor";
constexpr char col2im_backward_schema[] =
    "col2im_backward(Tensor grad, int[] kernel, int[] dilation, int[] padding, int[] stride) -> "
    "Tensor";

}  // namespace lamina

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/activation.h"
#include "common/ceil_div.h"
#include "common/float_type.h"

namespace lamina {

// Images in memory, channels last: `channels` of them in all groups together.
struct ConvImages {
  const void* data;
  int64_t count, height, width, channels;
};

// Which pixels of the images are read, and where the results go, along one direction. Position y of
// the grid reads through tap r row y * scale + offset + r * step, if that is inside, and makes row
// first + y * stride of the result. Tap r is tap first_tap + r * tap_stride of the weight.
//
// The forward pass has scale = stride, offset = -padding, step = dilation. The gradient of the
// input reads dZ; with a stride it is cut into phases, the rows y of one remainder: each meets taps
// of its own and is a convolution of stride 1, so that nothing is computed that contributes
// nothing.
struct ConvAxis {
  int taps, scale, offset, step;
  int64_t grid;
  int first_tap, tap_stride;
  int64_t first, stride, size;  // of the result
};
struct ConvTaps {
  ConvAxis vertical, horizontal;

  LAMINA_HOST_DEVICE int count() const { return vertical.taps * horizontal.taps; }
  LAMINA_HOST_DEVICE int64_t pixels() const { return vertical.grid * horizontal.grid; }
  bool dense() const { return vertical.stride == 1 && horizontal.stride == 1; }
};

// Filters as the kernels read them: [outs, taps, ins], each filter padded to `stride` elements.
struct ConvFilters {
  void* data;
  int64_t outs, ins, stride;  // outs of all groups, ins of one
};

// What becomes of the sums, [images, grid, outs] or, unless channels_last, [images, outs, grid].
// Pointers that are null are left out.
struct ConvOutputs {
  void* output;
  const void *bias, *residual;
  Activation activation;
  double parameter;
  uint8_t* mask;
  void* preactivation;
  bool channels_last;
};

// The dense weight [K, C / groups, R, S], in any order, to filters; `transposed`: to those of the
// gradient of the input, whose outs are the C channels. conv_filters_back() is the inverse.
void launch_conv_filters(FloatType type, const void* weight, const int64_t (&strides)[4],
                         const ConvTaps& taps, int groups, bool transposed,
                         const ConvFilters& filters, cudaStream_t stream);
void launch_conv_filters_back(FloatType type, const ConvFilters& filters, const ConvTaps& taps,
                              void* weight, const int64_t (&strides)[4], cudaStream_t stream);

// The sums over taps and channels of images times filters, as an implicit GEMM: the matrix of the
// columns exists in tiles in shared memory only.
// `partial` has room for so many sums.
int64_t conv_partial_sums(const ConvImages& images, const ConvTaps& taps,
                          const ConvFilters& filters, int groups, bool channels_last);
void launch_conv(FloatType type, const ConvImages& images, const ConvTaps& taps,
                 const ConvFilters& filters, int groups, const ConvOutputs& outputs, void* partial,
                 cudaStream_t stream);

// The same outputs from sums that lie in outputs.output: [images, outs] of taps.pixels().
void launch_conv_finish(FloatType type, int64_t images, int64_t outs, const ConvTaps& taps,
                        const ConvOutputs& outputs, cudaStream_t stream);

// filters = sum over the pixels of the grid of grad_z times what its taps read of the images; a
// grad_z has filters.outs channels, and one pixel for each of the grid's.
int64_t conv_grad_filters_partial_sums(const ConvImages& images, const ConvTaps& taps,
                                       const ConvFilters& filters, int groups);
void launch_conv_grad_filters(FloatType type, const ConvImages& images, const ConvImages& grad_z,
                              const ConvTaps& taps, const ConvFilters& filters, int groups,
                              void* partial, cudaStream_t stream);

// dZ = dY act'(saved) and its sums for each channel, for [images, channels, pixels]; linear's
// launch_linear_grad_z does the same for channels_last. Both results are optional.
struct ConvGradZ {
  int64_t images, channels, pixels;
  const void *grad, *saved;
  Activation activation;
  double parameter;
  void *grad_z, *grad_bias, *partial;  // conv_grad_z_partial_sums() sums, if grad_bias is wanted
};
int64_t conv_grad_z_partial_sums(const ConvGradZ& args);
void launch_conv_grad_z(FloatType type, const ConvGradZ& args, cudaStream_t stream);

}  // namespace lamina

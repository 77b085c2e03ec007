#pragma once

#include "conv2d/image_epilogue.h"
#include "conv2d/image_operand.h"
#include "conv2d/product.h"

// A 1x1 convolution without padding is a product of the tensors as they lie: the pixels of the
// output, of all images, are one direction of a matrix and the channels the other. With a stride
// the input's pixels are picked while they are packed.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The output's or (input gradient) the input's channels of every pixel = the sum over `depth`
// channels of the source.
template <class S, Kind K, class Epilogue>
void multiply_pixels(const Conv2dShape& shape, const Source<S>& source, const PixelGrid& grid,
                     const Matrix<Accumulator<S>, S>& weight, int64_t depth,
                     const Epilogue& epilogue, const Parallel& parallel) {
  using T = Accumulator<S>;
  const Reader<S, K> reader(source);
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  if (shape.channels_last)
    multiply_any<T>(pixels, weight.extent, depth, PixelPanels<S, K, true>{reader, grid, 0}, weight,
                    epilogue, parallel);
  else
    multiply_any<T>(weight.extent, pixels, depth, weight,
                    PixelPanels<S, K, false>{reader, grid, ceil_div(weight.extent, tile_rows<T>)},
                    epilogue, parallel);
}

template <class S>
void pointwise_forward(const Conv2dShape& shape, const Source<S>& input, const S* weight,
                       const Finish<S>& to, const Parallel& parallel) {
  const PixelGrid grid = output_grid(shape);
  with_kind(to.activation, [&](auto kind) {
    multiply_pixels<S, Kind::none>(shape, input, input_grid(shape),
                                   {weight, shape.channels, 1, shape.outs}, shape.channels,
                                   FinishTile<S, decltype(kind)::value>{to, grid}, parallel);
  });
}

template <class S>
void pointwise_grad_input(const Conv2dShape& shape, const Source<S>& gradient, const S* weight,
                          const Finish<S>& to, const Parallel& parallel) {
  const PixelGrid source_grid = output_grid(shape), grid = input_grid(shape);
  const Matrix<Accumulator<S>, S> transposed{weight, 1, shape.channels, shape.channels};
  with_kind(gradient.activation, [&](auto kind) {
    constexpr Kind K = decltype(kind)::value;
    if (grid.dense())
      multiply_pixels<S, K>(shape, gradient, source_grid, transposed, shape.outs,
                            FinishTile<S, Kind::none>{to, grid}, parallel);
    else
      multiply_pixels<S, K>(shape, gradient, source_grid, transposed, shape.outs,
                            SpreadTile<S>{to.output, to.layout, grid}, parallel);
  });
}

// Torch sums an image at a time or less: one chain through few pixels would round up to 2.7 times
// as much. So a pass takes a sixth of them, up to 128; of more than two thousand, a sixteenth.
inline int gradient_pass_depth(int64_t pixels) {
  const int64_t sixth = min64(pixels / 96, 7), sixteenth = pixels / 256;
  return static_cast<int>(
      min64(blocking.depth, 16 * (1 + (sixth > sixteenth ? sixth : sixteenth))));
}

// The gradients of the weight and, unless null, of the bias: dZ times the input. dZ costs more to
// pack, and least as B, whose panels are whole vectors; but then the sums come out transposed,
// which where there are many costs more.
template <class S>
void pointwise_grad_weight(const Conv2dShape& shape, const Source<S>& gradient,
                           const Source<S>& input, Accumulator<S>* grad_weight, S* grad_bias,
                           const Parallel& parallel) {
  using T = Accumulator<S>;
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  const int pass_depth = gradient_pass_depth(pixels);
  const int64_t blocks = ceil_div(pixels, pass_depth);
  T* const sums = grad_bias != nullptr ? new T[blocks * shape.outs] : nullptr;
  const PixelDepth<S, Kind::none> x{Reader<S, Kind::none>(input), input_grid(shape), pass_depth,
                                    nullptr};
  with_kind(gradient.activation, [&](auto kind) {
    constexpr Kind K = decltype(kind)::value;
    const PixelDepth<S, K> dz{Reader<S, K>(gradient), output_grid(shape), pass_depth, sums};
    if (pixels >= 4 * shape.channels)
      multiply_any<T>(shape.channels, shape.outs, pixels, x, dz,
                      StoreColumns<T>{grad_weight, shape.channels}, parallel, pass_depth);
    else
      multiply_any<T>(shape.outs, shape.channels, pixels, dz, x,
                      StoreRows<T, T>{grad_weight, shape.channels}, parallel, pass_depth);
  });
  if (grad_bias == nullptr) return;
  add_partial_sums(sums, blocks, shape.outs, grad_bias);
  delete[] sums;
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

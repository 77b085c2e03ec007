#include "common/launch.h"
#include "conv2d/conv_epilogue.cuh"
#include "conv2d/conv_grid.cuh"

// What a product's epilogue does, as a pass of its own over the sums of torch's convolution: bias,
// residual, activation and mask, in place.

namespace lamina {
namespace {

// A thread takes an octet of a row.
template <typename T>
__global__ void __launch_bounds__(conv_threads)
    conv_finish_kernel(ConvEpilogue<T> finish, int64_t rows, int64_t octets) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * conv_threads + threadIdx.x;
  if (index >= rows * octets) return;
  const int64_t row = index / octets, column = index % octets * octet;
  const int64_t left = finish.columns - column;
  accumulator_t<T> z[octet];
  finish.load(finish.output, row, column, left < octet ? static_cast<int>(left) : octet, z);
  finish(row, column, z);
}

}  // namespace

void launch_conv_finish(FloatType type, int64_t images, int64_t outs, const ConvTaps& taps,
                        const ConvOutputs& outputs, cudaStream_t stream) {
  const int64_t pixels = images * taps.pixels();
  const int64_t rows = outputs.channels_last ? pixels : outs;
  const int64_t columns = outputs.channels_last ? outs : pixels;
  const bool changes = outputs.bias || outputs.residual || outputs.activation != Activation::none;
  if (rows * columns == 0 || !changes) return;
  const int64_t octets = ceil_div<int64_t>(columns, octet);
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    const ConvEpilogue<T> finish(outputs, taps, rows, columns, 1);
    LAMINA_LAUNCH(conv_finish_kernel<T>, conv_blocks(rows * octets), conv_threads, 0, stream,
                  finish, rows, octets);
  });
}

}  // namespace lamina

#include "common/activation.cuh"
#include "common/cuda_types.cuh"
#include "common/launch.h"
#include "conv2d/conv_grid.cuh"
#include "linear/linear_cuda.h"

namespace lamina {
namespace {

template <typename T>
struct BlockSums {
  accumulator_t<T> sums[conv_threads];
};

// A block takes one channel and a run of pixels.
template <typename T>
__global__ void __launch_bounds__(conv_threads)
    conv_grad_z_kernel(int64_t channels, int64_t image_pixels, int64_t pixels, int64_t run,
                       const T* grad, const uint8_t* mask, const T* saved, Activation activation,
                       accumulator_t<T> parameter, T* grad_z, accumulator_t<T>* partial) {
  using Number = accumulator_t<T>;
  const int64_t channel = blockIdx.x % channels, part = blockIdx.x / channels;
  const int64_t begin = part * run, end = begin + run < pixels ? begin + run : pixels;
  Number sum = 0;
  for (int64_t p = begin + threadIdx.x; p < end; p += conv_threads) {
    const int64_t at = (p / image_pixels * channels + channel) * image_pixels + p % image_pixels;
    Number value[1] = {widen(grad[at])};
    const Number from[1] = {saved ? widen(saved[at]) : Number(0)};
    const unsigned kept = mask ? mask[channel * ceil_div<int64_t>(pixels, 8) + p / 8] >> p % 8 : 0;
    differentiate(activation, parameter, kept, from, value);
    if (grad_z) grad_z[at] = narrow<T>(value[0]);
    sum += value[0];
  }
  if (!partial) return;
  auto& shared = shared_memory<BlockSums<T>>();
  shared.sums[threadIdx.x] = sum;
  for (unsigned step = conv_threads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) shared.sums[threadIdx.x] += shared.sums[threadIdx.x + step];
  }
  if (threadIdx.x == 0) partial[part * channels + channel] = shared.sums[0];
}

int64_t grad_z_run(int64_t pixels) {
  const int64_t run = ceil_div<int64_t>(pixels, 128);
  return run < 2048 ? 2048 : run;
}
int64_t grad_z_runs(int64_t pixels) {
  return pixels == 0 ? 1 : ceil_div(pixels, grad_z_run(pixels));
}

}  // namespace

int64_t conv_grad_z_partial_sums(const ConvGradZ& args) {
  return grad_z_runs(args.images * args.pixels) * args.channels;
}

void launch_conv_grad_z(FloatType type, const ConvGradZ& args, cudaStream_t stream) {
  if (args.channels == 0) return;
  const int64_t pixels = args.images * args.pixels, runs = grad_z_runs(pixels);
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Number = accumulator_t<T>;
    const bool by_mask = saves_mask(args.activation);
    auto* partial = args.grad_bias ? static_cast<Number*>(args.partial) : nullptr;
    LAMINA_LAUNCH(conv_grad_z_kernel<T>, static_cast<unsigned>(runs * args.channels), conv_threads,
                  sizeof(BlockSums<T>), stream, args.channels, args.pixels, pixels,
                  grad_z_run(pixels), static_cast<const T*>(args.grad),
                  by_mask ? static_cast<const uint8_t*>(args.saved) : nullptr,
                  by_mask ? nullptr : static_cast<const T*>(args.saved), args.activation,
                  static_cast<Number>(args.parameter), static_cast<T*>(args.grad_z), partial);
    if (partial) launch_column_sums(type, partial, runs, args.channels, args.grad_bias, stream);
  });
}

}  // namespace lamina

#include "common/cuda_types.cuh"
#include "common/launch.h"
#include "conv2d/conv_grid.cuh"

namespace lamina {
namespace {

struct FilterStrides {
  int64_t out, in, row, column;
};

// Element `index` of the filters is weight[k, c, r, s]; false where the filters are padded.
struct FilterElement {
  int64_t offset;
  bool exists;

  __device__ FilterElement(int64_t index, const ConvFilters& filters, const ConvTaps& taps,
                           int64_t groups, bool transposed, const FilterStrides& strides) {
    const int64_t out = index / filters.stride, n = index % filters.stride;
    const int64_t in = n % filters.ins, tap = n / filters.ins;
    const int64_t group = out / (filters.outs / groups);
    const int64_t k = transposed ? group * filters.ins + in : out;
    const int64_t c = transposed ? out % (filters.outs / groups) : in;
    const ConvAxis &vertical = taps.vertical, &horizontal = taps.horizontal;
    const int64_t r = vertical.first_tap + tap / horizontal.taps * vertical.tap_stride;
    const int64_t s = horizontal.first_tap + tap % horizontal.taps * horizontal.tap_stride;
    exists = tap < taps.count();
    offset = k * strides.out + c * strides.in + r * strides.row + s * strides.column;
  }
};

template <typename T>
__global__ void __launch_bounds__(conv_threads)
    conv_filters_kernel(const T* weight, FilterStrides strides, ConvTaps taps, int groups,
                        bool transposed, ConvFilters filters) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * conv_threads + threadIdx.x;
  if (index >= filters.outs * filters.stride) return;
  const FilterElement element(index, filters, taps, groups, transposed, strides);
  static_cast<T*>(filters.data)[index] = element.exists ? weight[element.offset] : narrow<T>(0);
}

template <typename T>
__global__ void __launch_bounds__(conv_threads)
    conv_filters_back_kernel(ConvFilters filters, ConvTaps taps, T* weight, FilterStrides strides) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * conv_threads + threadIdx.x;
  if (index >= filters.outs * filters.stride) return;
  const FilterElement element(index, filters, taps, 1, false, strides);
  if (element.exists) weight[element.offset] = static_cast<const T*>(filters.data)[index];
}

FilterStrides filter_strides(const int64_t (&strides)[4]) {
  return {strides[0], strides[1], strides[2], strides[3]};
}

}  // namespace

void launch_conv_filters(FloatType type, const void* weight, const int64_t (&strides)[4],
                         const ConvTaps& taps, int groups, bool transposed,
                         const ConvFilters& filters, cudaStream_t stream) {
  if (filters.outs * filters.stride == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(conv_filters_kernel<T>, conv_blocks(filters.outs * filters.stride), conv_threads,
                  0, stream, static_cast<const T*>(weight), filter_strides(strides), taps, groups,
                  transposed, filters);
  });
}

void launch_conv_filters_back(FloatType type, const ConvFilters& filters, const ConvTaps& taps,
                              void* weight, const int64_t (&strides)[4], cudaStream_t stream) {
  if (filters.outs * filters.stride == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(conv_filters_back_kernel<T>, conv_blocks(filters.outs * filters.stride),
                  conv_threads, 0, stream, filters, taps, static_cast<T*>(weight),
                  filter_strides(strides));
  });
}

}  // namespace lamina

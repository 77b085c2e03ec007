#include "common/ceil_div.h"
#include "common/cuda_types.cuh"
#include "common/launch.h"
#include "squash/squash_cuda.h"

namespace lamina {
namespace {

constexpr int block_threads = 256;

// A row is taken by `lanes` lanes of a warp, a power of two: capsules are short, and neighbouring
// lanes should be neighbours in memory.
struct Rows {
  int64_t rows, columns;
  int lanes;

  __device__ int64_t row() const {
    return (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x) / lanes;
  }

  template <typename Step>
  __device__ void for_each(const Step& step) const {
    if (row() >= rows) return;
    for (int64_t column = threadIdx.x % lanes; column < columns; column += lanes)
      step(row() * columns + column);
  }

  template <typename Number>
  __device__ Number sum(Number value) const {
    for (int step = lanes / 2; step > 0; step /= 2)
      value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
  }
};

template <typename T>
__global__ void __launch_bounds__(block_threads)
    squash_forward_kernel(Rows rows, SquashKind kind, accumulator_t<T> eps, const T* input,
                          T* output) {
  using Number = accumulator_t<T>;
  Number q = 0;
  rows.for_each([&](int64_t at) { q += widen(input[at]) * widen(input[at]); });
  const Number f = squash_factors(kind, rows.sum(q), eps).f;
  rows.for_each([&](int64_t at) { output[at] = narrow<T>(f * widen(input[at])); });
}

template <typename T>
__global__ void __launch_bounds__(block_threads)
    squash_backward_kernel(Rows rows, SquashKind kind, accumulator_t<T> eps, const T* grad,
                           const T* input, T* grad_input) {
  using Number = accumulator_t<T>;
  Number q = 0, dot = 0;
  rows.for_each([&](int64_t at) {
    q += widen(input[at]) * widen(input[at]);
    dot += widen(input[at]) * widen(grad[at]);
  });
  const SquashFactors<Number> factors = squash_factors(kind, rows.sum(q), eps);
  const Number along = factors.h * rows.sum(dot);
  rows.for_each([&](int64_t at) {
    grad_input[at] = narrow<T>(factors.f * widen(grad[at]) + along * widen(input[at]));
  });
}

Rows cut_rows(int64_t rows, int64_t columns) {
  int lanes = 1;
  while (lanes < 32 && lanes < columns) lanes *= 2;
  return {rows, columns, lanes};
}

unsigned blocks_for(const Rows& rows) {
  return static_cast<unsigned>(ceil_div<int64_t>(rows.rows * rows.lanes, block_threads));
}

}  // namespace

void launch_squash_forward(FloatType type, SquashKind kind, double eps, const void* input,
                           int64_t rows, int64_t columns, void* output, cudaStream_t stream) {
  if (rows * columns == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    const Rows cut = cut_rows(rows, columns);
    LAMINA_LAUNCH(squash_forward_kernel<T>, blocks_for(cut), block_threads, 0, stream, cut, kind,
                  static_cast<accumulator_t<T>>(eps), static_cast<const T*>(input),
                  static_cast<T*>(output));
  });
}

void launch_squash_backward(FloatType type, SquashKind kind, double eps, const void* grad,
                            const void* input, int64_t rows, int64_t columns, void* grad_input,
                            cudaStream_t stream) {
  if (rows * columns == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    const Rows cut = cut_rows(rows, columns);
    LAMINA_LAUNCH(squash_backward_kernel<T>, blocks_for(cut), block_threads, 0, stream, cut, kind,
                  static_cast<accumulator_t<T>>(eps), static_cast<const T*>(grad),
                  static_cast<const T*>(input), static_cast<T*>(grad_input));
  });
}

}  // namespace lamina

#include "linear/linear_kernels.h"

#include "gemm/derivative.h"
#include "gemm/dot.h"
#include "gemm/epilogue.h"
#include "gemm/few_rows.h"
#include "gemm/gemm.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

template <class S>
void forward(const LinearForward& args, const Parallel& parallel) {
  using T = Accumulator<S>;
  const Matrix<T, S> input{static_cast<const S*>(args.input), args.input_row_stride,
                           args.input_column_stride, args.m};
  const Matrix<T, S> weight{static_cast<const S*>(args.weight), args.weight_row_stride,
                            args.weight_column_stride, args.n};
  const BiasActivation<T, S> epilogue{static_cast<S*>(args.output),
                                      args.n,
                                      static_cast<const S*>(args.bias),
                                      args.activation,
                                      static_cast<T>(args.parameter),
                                      args.mask,
                                      ceil_div(args.n, 8),
                                      static_cast<S*>(args.preactivation)};
  if (args.m > 0 && dot_suits(args.m, input, weight))
    dot_gemm(args.m, args.n, args.k, input, weight, epilogue, parallel);
  else
    gemm<T>(args.m, args.n, args.k, input, weight, epilogue, parallel);
}

// dZ itself, [m, n] dense, and its sum over the rows.
template <class T, class S>
void derivative_of_few_rows(const SavedGradient<S>& gradient, int64_t m, int64_t n, T* dz,
                            S* grad_bias) {
  with_derivative_loader<T>(gradient, 0, [&](const auto& loader) {
    for (int64_t column = 0; column < n; column += lanes<T>) {
      const int count = static_cast<int>(min64(lanes<T>, n - column));
      Vector<T> sum{};
      for (int64_t row = 0; row < m; ++row) {
        const Vector<T> value = loader(row, column, count);
        store_lanes<T>(dz + row * n + column, value, count);
        sum += value;
      }
      if (grad_bias != nullptr) store_lanes<T>(grad_bias + column, sum, count);
    }
  });
}

template <class S>
void backward_of_few_rows(const LinearBackward& args, const SavedGradient<S>& gradient,
                          const Parallel& parallel) {
  using T = Accumulator<S>;
  T* const dz = static_cast<T*>(workspace(args.m * args.n * static_cast<int64_t>(sizeof(T))));
  derivative_of_few_rows(gradient, args.m, args.n, dz, static_cast<S*>(args.grad_bias));
  few_rows_backward(FewRows<T, S>{args.m, args.n, args.k, dz, static_cast<const S*>(args.input),
                                  args.input_row_stride, static_cast<const S*>(args.weight),
                                  args.weight_row_stride, static_cast<S*>(args.grad_input),
                                  static_cast<S*>(args.grad_weight)},
                    parallel);
}

template <class S>
void backward(const LinearBackward& args, const Parallel& parallel) {
  using T = Accumulator<S>;
  const bool is_mask = saves_mask(args.activation);
  const SavedGradient<S> gradient{static_cast<const S*>(args.gradient),
                                  args.gradient_row_stride,
                                  args.gradient_column_stride,
                                  args.saved,
                                  is_mask ? ceil_div(args.n, 8) : args.n,
                                  args.activation,
                                  static_cast<T>(args.parameter)};
  if (args.m > 0 && args.m <= blocking.unpacked_gradient_rows && args.n > 0 && args.k > 0 &&
      args.input_column_stride == 1 && args.weight_column_stride == 1 &&
      !args.grad_weight_transposed)
    return backward_of_few_rows(args, gradient, parallel);

  if (args.grad_input != nullptr) {
    const DerivativeByRow<T, S> dz{gradient};
    const Matrix<T, S> weight{static_cast<const S*>(args.weight), args.weight_column_stride,
                              args.weight_row_stride, args.k};
    gemm<T>(args.m, args.k, args.n, dz, weight,
            StoreRows<T, S>{static_cast<S*>(args.grad_input), args.k}, parallel);
  }

  T* const sums = args.grad_bias != nullptr ? static_cast<T*>(args.partial_sums) : nullptr;
  const DerivativeByColumn<T, S> dz{gradient, args.n, sums};
  if (args.grad_weight != nullptr) {
    const Matrix<T, S> input{static_cast<const S*>(args.input), args.input_column_stride,
                             args.input_row_stride, args.k};
    S* const grad_weight = static_cast<S*>(args.grad_weight);
    if (args.grad_weight_transposed)
      gemm<T>(args.k, args.n, args.m, input, dz, StoreRows<T, S>{grad_weight, args.n}, parallel);
    else
      gemm<T>(args.n, args.k, args.m, dz, input, StoreRows<T, S>{grad_weight, args.k}, parallel);
  }
  if (args.grad_bias != nullptr) {
    if (args.grad_weight == nullptr || args.k == 0) sum_packed<T>(dz, args.n, args.m, parallel);
    add_partial_sums(sums, linear_sum_blocks(args.m), args.n, static_cast<S*>(args.grad_bias));
  }
}

}  // namespace

void linear_forward(const LinearForward& args, const Parallel& parallel) {
  switch (args.type) {
    case FloatType::f32:
      return forward<float>(args, parallel);
    case FloatType::f64:
      return forward<double>(args, parallel);
    case FloatType::bf16:
      return forward<bfloat16>(args, parallel);
    case FloatType::f16:
      return forward<float16>(args, parallel);
  }
}

void linear_backward(const LinearBackward& args, const Parallel& parallel) {
  switch (args.type) {
    case FloatType::f32:
      return backward<float>(args, parallel);
    case FloatType::f64:
      return backward<double>(args, parallel);
    case FloatType::bf16:
      return backward<bfloat16>(args, parallel);
    case FloatType::f16:
      return backward<float16>(args, parallel);
  }
}

int64_t linear_sum_blocks(int64_t m) { return ceil_div(m, blocking.depth); }

}  // namespace LAMINA_ISA
}  // namespace lamina

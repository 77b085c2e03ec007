#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "common/parallel_torch.h"
#include "linear/linear.h"
#include "linear/linear_checks.h"
#include "linear/linear_kernels.h"

namespace lamina {
namespace {

// A tensor [..., C] seen as a matrix [rows, C].
struct Rows {
  Tensor tensor;  // keeps the memory alive
  int64_t rows, columns, row_stride, column_stride;
};

// The leading dimensions become one where their strides allow; else the tensor is copied.
Rows as_rows(const Tensor& given) {
  const int64_t last = given.dim() - 1, columns = given.size(last);
  int64_t rows = 1, row_stride = columns, next = 0;
  bool one_stride = true;
  for (int64_t d = last - 1; d >= 0; --d) {
    const int64_t size = given.size(d);
    if (size != 1) {
      if (rows == 1)
        row_stride = given.stride(d);
      else if (given.stride(d) != next)
        one_stride = false;
      next = given.stride(d) * size;
    }
    rows *= size;
  }
  if (one_stride || rows == 0) return {given, rows, columns, row_stride, given.stride(last)};
  return {torch::stable::contiguous(given), rows, columns, columns, 1};
}

std::tuple<Tensor, Tensor> forward(const Tensor& given_input, const Tensor& weight,
                                   const std::optional<Tensor>& given_bias, std::string name,
                                   double parameter, bool save) {
  const Activation activation = activation_named("linear", name);
  check_linear(given_input, weight);
  if (given_bias.has_value()) check_linear_bias(*given_bias, given_input, weight);
  const Rows input = as_rows(given_input);
  const int64_t n = weight.size(0);

  const auto sizes = given_input.sizes();
  std::vector<int64_t> output_sizes(sizes.begin(), sizes.end());
  output_sizes.back() = n;
  Tensor output = torch::stable::new_empty(given_input, output_sizes);
  prefer_huge_pages(output);
  const bool mask = save && saves_mask(activation);
  const bool preactivation = save && saves_preactivation(activation);
  Tensor saved = preactivation ? torch::stable::new_empty(given_input, output_sizes)
                 : mask        ? empty_bytes(output, {input.rows, (n + 7) / 8})
                               : empty_bytes(output, {0});
  if (preactivation) prefer_huge_pages(saved);

  std::optional<Tensor> bias;
  if (given_bias.has_value()) bias = as_contiguous(*given_bias);
  LinearForward args;
  args.type = float_type(given_input);
  args.m = input.rows;
  args.n = n;
  args.k = input.columns;
  args.input = input.tensor.data_ptr();
  args.input_row_stride = input.row_stride;
  args.input_column_stride = input.column_stride;
  args.weight = weight.data_ptr();
  args.weight_row_stride = weight.stride(0);
  args.weight_column_stride = weight.stride(1);
  args.bias = bias.has_value() ? bias->data_ptr() : nullptr;
  args.activation = activation;
  args.parameter = parameter;
  args.output = output.data_ptr();
  args.mask = mask ? static_cast<uint8_t*>(saved.data_ptr()) : nullptr;
  args.preactivation = preactivation ? saved.data_ptr() : nullptr;
  LAMINA_DISPATCH(linear_forward)(args, torch_threads());
  return {output, saved};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& given_gradient, const Tensor& given_input,
                                            const Tensor& weight, const Tensor& given_saved,
                                            std::string name, double parameter,
                                            std::vector<bool> needs) {
  const Activation activation = activation_named("linear", name);
  check_linear_backward(given_gradient, given_input, weight, given_saved, activation, needs);
  const Rows gradient = as_rows(given_gradient), input = as_rows(given_input);
  const Tensor saved = as_contiguous(given_saved);
  const int64_t m = input.rows, n = weight.size(0), k = weight.size(1);

  // The packers read the weight by its strides, and its gradient takes them where they are dense.
  const bool transposed = weight.stride(0) == 1 && weight.stride(1) == n && n > 1;
  Tensor grad_input, grad_weight, grad_bias, partial_sums;
  if (needs[0]) {
    grad_input = torch::stable::new_empty(given_input, given_input.sizes());
    prefer_huge_pages(grad_input);
  }
  if (needs[1]) {
    grad_weight = transposed ? torch::stable::new_empty(weight, {k, n})
                             : torch::stable::new_empty(weight, {n, k});
    prefer_huge_pages(grad_weight);
  }
  if (needs[2]) {
    const ScalarType sum_type =
        weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    grad_bias = torch::stable::new_empty(weight, {n});
    partial_sums =
        torch::stable::new_empty(weight, {LAMINA_DISPATCH(linear_sum_blocks)(m), n}, sum_type);
  }

  LinearBackward args;
  args.type = float_type(given_input);
  args.m = m;
  args.n = n;
  args.k = k;
  args.gradient = gradient.tensor.data_ptr();
  args.gradient_row_stride = gradient.row_stride;
  args.gradient_column_stride = gradient.column_stride;
  args.input = input.tensor.data_ptr();
  args.input_row_stride = input.row_stride;
  args.input_column_stride = input.column_stride;
  args.weight = weight.data_ptr();
  args.weight_row_stride = weight.stride(0);
  args.weight_column_stride = weight.stride(1);
  args.saved = saved.data_ptr();
  args.activation = activation;
  args.parameter = parameter;
  args.grad_input = needs[0] ? grad_input.data_ptr() : nullptr;
  args.grad_weight = needs[1] ? grad_weight.data_ptr() : nullptr;
  args.grad_weight_transposed = transposed;
  args.grad_bias = needs[2] ? grad_bias.data_ptr() : nullptr;
  args.partial_sums = needs[2] ? partial_sums.data_ptr() : nullptr;
  LAMINA_DISPATCH(linear_backward)(args, torch_threads());
  if (needs[1] && transposed) grad_weight = torch::stable::transpose(grad_weight, 0, 1);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace lamina

STABLE_TORCH_LIBRARY_FRAGMENT(lamina, m) {
  m.def(lamina::linear_forward_schema);
  m.def(lamina::linear_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(lamina, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&lamina::forward));
  m.impl("linear_backward", TORCH_BOX(&lamina::backward));
}

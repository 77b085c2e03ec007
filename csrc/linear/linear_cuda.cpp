#include "linear/linear_cuda.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/cuda_glue.h"
#include "linear/linear.h"
#include "linear/linear_checks.h"

namespace lamina {
namespace {

// A tensor [..., columns] seen as a matrix.
struct Matrix {
  Tensor tensor;
  int64_t rows, columns, row_stride, column_stride;
};

// The leading dimensions become one, without a copy where their strides allow it.
Matrix as_matrix(const Tensor& given) {
  const int64_t last = given.dim() - 1;
  int64_t rows = 1, row_stride = 0;
  bool merges = true;
  for (int64_t d = last - 1; d >= 0; --d) {
    if (given.size(d) == 1) continue;
    if (rows == 1) row_stride = given.stride(d);
    merges = merges && given.stride(d) == rows * row_stride;
    rows *= given.size(d);
  }
  const int64_t columns = given.size(last);
  if (!merges) return {torch::stable::contiguous(given), rows, columns, columns, 1};
  return {given, rows, columns, row_stride, columns == 1 ? 1 : given.stride(last)};
}

// The tensor-core kernels take rows without gaps.
Matrix with_contiguous_rows(const Matrix& matrix) {
  if (matrix.column_stride == 1) return matrix;
  return {torch::stable::contiguous(matrix.tensor), matrix.rows, matrix.columns, matrix.columns, 1};
}

bool is_16_bit(FloatType type) { return type == FloatType::bf16 || type == FloatType::f16; }

Matrix activations_for(FloatType type, const Tensor& tensor) {
  const Matrix matrix = as_matrix(tensor);
  return is_16_bit(type) ? with_contiguous_rows(matrix) : matrix;
}

Matrix weight_for(FloatType type, const Tensor& tensor) {
  const Matrix matrix = as_matrix(tensor);
  const bool usable = !is_16_bit(type) || matrix.row_stride == 1;
  return usable ? matrix : with_contiguous_rows(matrix);
}

Tensor new_sums(const Tensor& like, FloatType type, int64_t count) {
  return torch::stable::new_empty(like, {count},
                                  type == FloatType::f64 ? ScalarType::Double : ScalarType::Float);
}

// A(i, k) and B(j, k) of a matrix M: by_rows(M) is M[i, k], by_columns(M) is M[k, i].
GemmOperand by_rows(const CudaCall& call, const Matrix& matrix) {
  return {call.pointer(matrix.tensor), matrix.row_stride, matrix.column_stride};
}
GemmOperand by_columns(const CudaCall& call, const Matrix& matrix) {
  return {call.pointer(matrix.tensor), matrix.column_stride, matrix.row_stride};
}

void gemm(const CudaCall& call, const Tensor& like, const GemmPlan& plan, const GemmOperand& a,
          const GemmOperand& b, const LinearOutputs& outputs) {
  const FloatType type = float_type(like);
  const Tensor partial = new_sums(like, type, plan.partial_sums());
  launch_linear_gemm(type, plan, a, b, outputs, call.pointer(partial), call.stream());
}

LinearOutputs plain(const CudaCall& call, const Tensor& output) {
  return {call.pointer(output), nullptr, Activation::none, 0, nullptr, nullptr};
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight,
                                   const std::optional<Tensor>& bias, const std::string& name,
                                   double parameter, bool save) {
  const Activation activation = activation_named("linear", name);
  check_linear(input, weight);
  if (bias) check_linear_bias(*bias, input, weight);
  const CudaCall call(input);
  const FloatType type = float_type(input);
  const Matrix x = activations_for(type, input), w = weight_for(type, weight);

  std::vector<int64_t> shape(input.sizes().begin(), input.sizes().end());
  shape.back() = w.rows;
  const Tensor output = torch::stable::new_empty(input, shape);
  const bool save_mask = save && saves_mask(activation);
  const bool save_z = save && saves_preactivation(activation);
  const Tensor saved = save_z      ? torch::stable::empty_like(output)
                       : save_mask ? empty_bytes(input, {x.rows, ceil_div<int64_t>(w.rows, 8)})
                                   : empty_bytes(input, {0});
  Tensor b;
  if (bias) b = torch::stable::contiguous(*bias);
  const LinearOutputs outputs{call.pointer(output),
                              bias ? call.pointer(b) : nullptr,
                              activation,
                              parameter,
                              save_mask ? call.pointer<uint8_t>(saved) : nullptr,
                              save_z ? call.pointer(saved) : nullptr};
  gemm(call, input, plan_gemm(x.rows, w.rows, x.columns), by_rows(call, x), by_rows(call, w),
       outputs);
  call.check();
  return {output, saved};
}

// dW = dZᵀ X in the layout of the weight: for one that is stored transposed, dWᵀ = Xᵀ dZ.
Tensor weight_gradient(const CudaCall& call, const Tensor& weight, const Matrix& grad_z,
                       const Matrix& x) {
  const Tensor grad_weight = torch::stable::empty_like(weight);
  const bool transposed = !grad_weight.is_contiguous();
  const Matrix& rows = transposed ? x : grad_z;
  const Matrix& columns = transposed ? grad_z : x;
  gemm(call, weight, plan_gemm(rows.columns, columns.columns, rows.rows), by_columns(call, rows),
       by_columns(call, columns), plain(call, grad_weight));
  return grad_weight;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& input,
                                            const Tensor& weight, const Tensor& saved,
                                            const std::string& name, double parameter,
                                            const std::vector<bool>& needs) {
  const Activation activation = activation_named("linear", name);
  check_linear_backward(grad, input, weight, saved, activation, needs);
  const CudaCall call(grad);
  const FloatType type = float_type(grad);
  std::tuple<Tensor, Tensor, Tensor> grads;
  auto& [grad_input, grad_weight, grad_bias] = grads;

  const Matrix grad_y = as_matrix(grad);  // keeps a copy alive until the kernels have read it
  Matrix grad_z = grad_y;
  const bool need_z = needs[0] || needs[1];
  const bool through_activation = need_z && activation != Activation::none;
  if (through_activation || needs[2]) {
    const Tensor kept = torch::stable::contiguous(saved);
    LinearGradZ args{grad_z.rows,
                     grad_z.columns,
                     call.pointer(grad_z.tensor),
                     grad_z.row_stride,
                     grad_z.column_stride,
                     call.pointer(kept),
                     activation,
                     parameter,
                     nullptr,
                     nullptr,
                     nullptr};
    Tensor partial;
    if (needs[2]) {
      grad_bias = torch::stable::new_empty(weight, {grad_z.columns});
      partial = new_sums(grad, type, grad_z_partial_sums(grad_z.rows, grad_z.columns));
      args.grad_bias = call.pointer(grad_bias);
      args.partial = call.pointer(partial);
    }
    if (through_activation) {
      grad_z.tensor = torch::stable::new_empty(grad, {grad_z.rows, grad_z.columns});
      grad_z.row_stride = grad_z.columns;
      grad_z.column_stride = 1;
      args.grad_z = call.pointer(grad_z.tensor);
    }
    launch_linear_grad_z(type, args, call.stream());
  }
  if (need_z && is_16_bit(type)) grad_z = with_contiguous_rows(grad_z);
  if (needs[0]) {
    const Matrix w = weight_for(type, weight);
    grad_input = torch::stable::new_empty(input, input.sizes());
    gemm(call, input, plan_gemm(grad_z.rows, w.columns, w.rows), by_rows(call, grad_z),
         by_columns(call, w), plain(call, grad_input));
  }
  if (needs[1]) grad_weight = weight_gradient(call, weight, grad_z, activations_for(type, input));
  call.check();
  return grads;
}

}  // namespace
}  // namespace lamina

#ifdef LAMINA_HOST_SHIM
STABLE_TORCH_LIBRARY_FRAGMENT(lamina_host, m) {
  m.def(lamina::linear_forward_schema);
  m.def(lamina::linear_backward_schema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(LAMINA_CUDA_NAMESPACE, LAMINA_CUDA_KEY, m) {
  m.impl("linear_forward", TORCH_BOX(&lamina::forward));
  m.impl("linear_backward", TORCH_BOX(&lamina::backward));
}

#include <torch/csrc/stable/library.h>

#include <string>

#include "common/parallel_torch.h"
#include "common/tensor.h"
#include "squash/squash.h"
#include "squash/squash_checks.h"
#include "squash/squash_kernels.h"

namespace lamina {
namespace {

// A task's elements: fewer are not worth a thread.
constexpr int64_t task_elements = 32 << 10;

Tensor run(const Tensor& input, const Tensor* grad, const std::string& kind, double eps) {
  const bool f64 = input.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(f64 || input.scalar_type() == ScalarType::Float,
                  "squash on the CPU takes float32 and float64");
  const int64_t dim = input.size(input.dim() - 1), size = input.element_size();
  const int64_t rows = dim == 0 ? 0 : input.numel() / dim;
  Tensor output = torch::stable::new_empty(
      input, std::vector<int64_t>(input.sizes().begin(), input.sizes().end()));
  const auto at = [&](const Tensor& tensor, int64_t row) {
    return static_cast<char*>(tensor.data_ptr()) + row * dim * size;
  };
  const int64_t tasks = std::max<int64_t>(rows * dim / task_elements, 1);
  parallel_for(torch_threads(), static_cast<int>(tasks), [&](int task) {
    const int64_t begin = rows * task / tasks, end = rows * (task + 1) / tasks;
    LAMINA_DISPATCH(squash_rows)
    ({f64, at(input, begin), grad ? at(*grad, begin) : nullptr, at(output, begin), end - begin, dim,
      squash_kind(kind), eps});
  });
  return output;
}

Tensor forward(const Tensor& input, const std::string& kind, double eps) {
  check_squash(input);
  return run(as_contiguous(input), nullptr, kind, eps);
}

Tensor backward(const Tensor& grad, const Tensor& input, const std::string& kind, double eps) {
  check_squash_backward(grad, input);
  const Tensor dense = as_contiguous(grad);
  return run(as_contiguous(input), &dense, kind, eps);
}

}  // namespace
}  // namespace lamina

STABLE_TORCH_LIBRARY_FRAGMENT(lamina, m) {
  m.def(lamina::squash_forward_schema);
  m.def(lamina::squash_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(lamina, CPU, m) {
  m.impl("squash_forward", TORCH_BOX(&lamina::forward));
  m.impl("squash_backward", TORCH_BOX(&lamina::backward));
}

#include "squash/squash_cuda.h"

#include <torch/csrc/stable/library.h>

#include <string>

#include "common/cuda_glue.h"
#include "squash/squash_checks.h"

namespace lamina {
namespace {

Tensor forward(const Tensor& given, const std::string& kind, double eps) {
  check_squash(given);
  const CudaCall call(given);
  const Tensor input = torch::stable::contiguous(given);
  const Tensor output = torch::stable::empty_like(input);
  const int64_t columns = input.size(input.dim() - 1);
  launch_squash_forward(float_type(input), squash_kind(kind), eps, call.pointer(input),
                        columns ? input.numel() / columns : 0, columns, call.pointer(output),
                        call.stream());
  call.check();
  return output;
}

Tensor backward(const Tensor& given_grad, const Tensor& given, const std::string& kind,
                double eps) {
  check_squash_backward(given_grad, given);
  const CudaCall call(given);
  const Tensor grad = torch::stable::contiguous(given_grad);
  const Tensor input = torch::stable::contiguous(given);
  const Tensor grad_input = torch::stable::empty_like(input);
  const int64_t columns = input.size(input.dim() - 1);
  launch_squash_backward(float_type(input), squash_kind(kind), eps, call.pointer(grad),
                         call.pointer(input), columns ? input.numel() / columns : 0, columns,
                         call.pointer(grad_input), call.stream());
  call.check();
  return grad_input;
}

}  // namespace
}  // namespace lamina

#ifdef LAMINA_HOST_SHIM
STABLE_TORCH_LIBRARY_FRAGMENT(lamina_host, m) {
  m.def(lamina::squash_forward_schema);
  m.def(lamina::squash_backward_schema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(LAMINA_CUDA_NAMESPACE, LAMINA_CUDA_KEY, m) {
  m.impl("squash_forward", TORCH_BOX(&lamina::forward));
  m.impl("squash_backward", TORCH_BOX(&lamina::backward));
}

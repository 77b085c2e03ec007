#include "threshold/threshold_cuda.h"

#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/cuda_glue.h"
#include "threshold/threshold.h"

namespace lamina {
namespace {

// Returns the mask. `output` may be `input`.
Tensor threshold_into(const CudaCall& call, const Tensor& input, const Tensor& output,
                      double threshold, bool save_mask) {
  const int64_t n = input.numel();
  const Tensor mask = empty_bytes(input, {save_mask ? mask_bytes(n) : 0});
  launch_threshold_forward(float_type(input), call.pointer(input), call.pointer(output),
                           call.pointer<uint8_t>(mask), n, threshold, call.stream());
  call.check();
  return mask;
}

std::tuple<Tensor, Tensor> forward(const Tensor& given, double threshold, bool save_mask) {
  const CudaCall call(given);
  const Tensor input = is_dense(given) ? given : torch::stable::contiguous(given);
  const Tensor output = torch::stable::empty_like(input);
  return {output, threshold_into(call, input, output, threshold, save_mask)};
}

Tensor forward_in_place(const Tensor& input, double threshold, bool save_mask) {
  const CudaCall call(input);
  check_dense("threshold_forward_: input", input);
  return threshold_into(call, input, input, threshold, save_mask);
}

Tensor backward(const Tensor& grad, const Tensor& mask) {
  const CudaCall call(grad);
  const int64_t n = grad.numel();
  check_dense("threshold_backward: grad", grad);
  check_mask("threshold_backward: mask", mask, grad, {mask_bytes(n)});
  const Tensor grad_input = torch::stable::empty_like(grad);
  launch_threshold_backward(float_type(grad), call.pointer(grad), call.pointer<uint8_t>(mask),
                            call.pointer(grad_input), n, call.stream());
  call.check();
  return grad_input;
}

}  // namespace
}  // namespace lamina

#ifdef LAMINA_HOST_SHIM
STABLE_TORCH_LIBRARY_FRAGMENT(lamina_host, m) {
  m.def(lamina::threshold_forward_schema);
  m.def(lamina::threshold_forward_in_place_schema);
  m.def(lamina::threshold_backward_schema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(LAMINA_CUDA_NAMESPACE, LAMINA_CUDA_KEY, m) {
  m.impl("threshold_forward", TORCH_BOX(&lamina::forward));
  m.impl("threshold_forward_", TORCH_BOX(&lamina::forward_in_place));
  m.impl("threshold_backward", TORCH_BOX(&lamina::backward));
}

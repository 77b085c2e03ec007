#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/parallel_torch.h"
#include "threshold/threshold.h"
#include "threshold/threshold_kernels.h"

namespace lamina {
namespace {

// Below this many bytes a second thread costs more than it saves; above the last-level cache of any
// current CPU core, stores that bypass the caches save reading what is about to be overwritten.
constexpr int64_t grain_bytes = 256 << 10;
constexpr int64_t stream_bytes = 32 << 20;

// Cuts n elements into runs, one a task; every run but the last is a multiple of 64 elements, so
// that no two tasks share a cache line of the output or a byte of the mask.
template <class Body>
void for_runs(int64_t n, int64_t element_size, const Body& body) {
  const Parallel parallel = torch_threads();
  const int64_t wanted = std::min<int64_t>(parallel.threads, n * element_size / grain_bytes + 1);
  const int64_t length = (n + wanted - 1) / wanted;
  const int64_t run = std::max<int64_t>((length + 63) / 64 * 64, 64);
  const int tasks = static_cast<int>((n + run - 1) / run);
  parallel_for(parallel, tasks, [&](int task) {
    const int64_t begin = task * run;
    body(begin, std::min(run, n - begin));
  });
}

// Returns the mask. `output` may be `input`: its lines are then in the caches already, and stores
// that bypass these would only lose them.
Tensor threshold_into(const Tensor& input, const Tensor& output, double threshold, bool save_mask) {
  const FloatType type = float_type(input);
  const int64_t n = input.numel(), size = input.element_size();
  const bool stream = output.data_ptr() != input.data_ptr() && n * size > stream_bytes;
  Tensor mask = empty_bytes(input, {save_mask ? mask_bytes(n) : 0});
  const auto* in = static_cast<const char*>(input.data_ptr());
  auto* out = static_cast<char*>(output.data_ptr());
  auto* bits = save_mask ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
  for_runs(n, size, [&](int64_t begin, int64_t length) {
    LAMINA_DISPATCH(threshold_forward)
    ({type, in + begin * size, out + begin * size, bits ? bits + begin / 8 : nullptr, length,
      threshold, stream});
  });
  return mask;
}

std::tuple<Tensor, Tensor> forward(const Tensor& given, double threshold, bool save_mask) {
  const Tensor input = is_dense(given) ? given : torch::stable::contiguous(given);
  const Tensor output = torch::stable::empty_like(input);
  prefer_huge_pages(output);
  return {output, threshold_into(input, output, threshold, save_mask)};
}

Tensor forward_in_place(const Tensor& input, double threshold, bool save_mask) {
  check_dense("threshold_forward_: input", input);
  return threshold_into(input, input, threshold, save_mask);
}

Tensor backward(const Tensor& grad, const Tensor& mask) {
  const int64_t n = grad.numel(), size = grad.element_size();
  check_dense("threshold_backward: grad", grad);
  check_mask("threshold_backward: mask", mask, grad, {mask_bytes(n)});
  const FloatType type = float_type(grad);
  Tensor grad_input = torch::stable::empty_like(grad);
  prefer_huge_pages(grad_input);
  const auto* in = static_cast<const char*>(grad.data_ptr());
  auto* out = static_cast<char*>(grad_input.data_ptr());
  const auto* bits = static_cast<const uint8_t*>(mask.data_ptr());
  for_runs(n, size, [&](int64_t begin, int64_t length) {
    LAMINA_DISPATCH(threshold_backward)
    ({type, in + begin * size, bits + begin / 8, out + begin * size, length,
      n * size > stream_bytes});
  });
  return grad_input;
}

}  // namespace
}  // namespace lamina

STABLE_TORCH_LIBRARY_FRAGMENT(lamina, m) {
  m.def(lamina::threshold_forward_schema);
  m.def(lamina::threshold_forward_in_place_schema);
  m.def(lamina::threshold_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(lamina, CPU, m) {
  m.impl("threshold_forward", TORCH_BOX(&lamina::forward));
  m.impl("threshold_forward_", TORCH_BOX(&lamina::forward_in_place));
  m.impl("threshold_backward", TORCH_BOX(&lamina::backward));
}

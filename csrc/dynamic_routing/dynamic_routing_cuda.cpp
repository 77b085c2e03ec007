#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "dynamic_routing/dynamic_routing.h"
#include "dynamic_routing/dynamic_routing_checks.h"
#include "dynamic_routing/routing_cuda_steps.h"

namespace lamina {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& weight,
                                           const MaybeTensor& bias, const MaybeTensor& prior,
                                           const MaybeTensor& mask, int64_t iterations,
                                           const std::string& coupling_dim, bool leaky,
                                           bool accumulate, double scale, const std::string& squash,
                                           double eps, bool save, bool return_couplings) {
  const CudaCall call(u);
  const CudaRoutingSteps steps(call, u, weight, prior, mask, coupling_dim, leaky);
  check_dynamic_routing_forward(u, weight, bias, iterations);
  const RoutingShape& shape = steps.shape();
  const void* bias_data = bias ? steps.pointer(*bias) : nullptr;
  const Tensor links = steps.empty(shape.links());
  const Tensor sums = steps.empty(shape.vectors()), routed = steps.empty(shape.vectors());
  void *c = steps.pointer(links), *v = steps.pointer(routed);

  const Tensor output = steps.empty_vectors();
  const Tensor saved = torch::stable::new_empty(
      u, {save ? iterations : 0, shape.batch, shape.out_capsules, shape.out_dim});
  const Tensor couplings = torch::stable::new_empty(
      u, {return_couplings ? shape.batch : 0, shape.in_capsules, shape.out_capsules});
  for (int64_t t = 0; t < iterations; ++t) {
    const bool first = t == 0, last = t == iterations - 1;
    steps.couple(first ? nullptr : v, true, c);
    const Tensor partial = steps.weighted_sum(c);
    RoutingForwardStep to{bias_data, steps.pointer(sums), nullptr, nullptr, nullptr, nullptr,
                          scale};
    if (save) to.saved = steps.item(saved, t, shape.vectors());
    if (last)
      to.output = steps.pointer(output);
    else
      to.routed = v;
    if (accumulate && !first) to.before = v;
    launch_routing_forward_step(shape, {squash_kind(squash), eps}, steps.pointer(partial),
                                routing_chunks(shape), to, steps.stream());
  }
  if (return_couplings) steps.links_out(c, steps.pointer(couplings));
  call.check();
  return {output, saved, couplings};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& u, const Tensor& weight, const MaybeTensor& bias,
    const MaybeTensor& prior, const MaybeTensor& mask, const Tensor& s,
    const std::string& coupling_dim, bool detach_votes, bool leaky, bool accumulate, double scale,
    const std::string& squash, double eps, const std::vector<bool>& needs) {
  const CudaCall call(u);
  const CudaRoutingSteps steps(call, u, weight, prior, mask, coupling_dim, leaky);
  check_dynamic_routing_backward(grad, u, weight, bias, s, needs);
  const RoutingShape& shape = steps.shape();
  const RoutingSquash squashing{squash_kind(squash), eps};
  const int r = static_cast<int>(s.size(0));
  const bool need_bias = needs[2] && bias, need_prior = needs[3] && prior;
  const bool through_logits = !detach_votes || need_bias || need_prior;

  // The gradient of the votes is sum_t c^t sbar^t + beta^t V^t, V^1 = 0. All its terms are kept:
  // c^1 .. c^r, beta^2 .. beta^r, and beta^1 for the prior alone; sbar^1 .. sbar^r, V^2 .. V^r.
  const Tensor all_links = steps.empty((through_logits ? 2 * r : r) * shape.links());
  const Tensor all_vectors = steps.empty((2 * r - 1) * shape.vectors());
  const auto c = [&](int t) { return steps.item(all_links, t - 1, shape.links()); };
  const auto beta = [&](int t) {
    return steps.item(all_links, t == 1 ? 2 * r - 1 : r + t - 2, shape.links());
  };
  const auto grad_s = [&](int t) { return steps.item(all_vectors, t - 1, shape.vectors()); };
  const auto v = [&](int t) {
    return t == 1 ? nullptr : steps.item(all_vectors, r + t - 2, shape.vectors());
  };

  const Tensor sums = steps.empty(r * shape.vectors()), grad_v = steps.empty(shape.vectors());
  const Tensor given = torch::stable::contiguous(s);
  const Tensor contiguous_grad = torch::stable::contiguous(grad);
  const auto sum = [&](int t) { return steps.item(sums, t - 1, shape.vectors()); };
  steps.vectors_in(steps.pointer(given), steps.pointer(sums), r);
  steps.vectors_in(steps.pointer(contiguous_grad), steps.pointer(grad_v));
  for (int t = 1; t < r; ++t)
    launch_routing_forward_step(
        shape, squashing, sum(t), 1,
        {nullptr, sum(t), nullptr, nullptr, accumulate ? v(t) : nullptr, v(t + 1), scale},
        steps.stream());
  launch_routing_backward_step(shape, squashing, nullptr, 1, true, sum(r), steps.pointer(grad_v),
                               grad_s(r), steps.stream());
  for (int t = r; t >= 1; --t) {
    const bool need_logits = t > 1 ? through_logits : need_prior;
    steps.couple(v(t), !need_logits, c(t));
    if (need_logits) steps.couple_backward(grad_s(t), c(t), beta(t));
    if (t == 1 || !through_logits) break;
    const Tensor partial = steps.weighted_sum(beta(t));
    launch_routing_backward_step(shape, squashing, steps.pointer(partial), scale,
                                 accumulate && t < r, sum(t - 1), steps.pointer(grad_v),
                                 grad_s(t - 1), steps.stream());
  }

  Tensor grad_u, grad_weight, grad_bias, grad_prior;
  const int first = detach_votes ? r : 1, terms = detach_votes ? 1 : 2 * r - 1;
  if (needs[0]) grad_u = steps.grad_u(terms, c(first), grad_s(first));
  if (needs[1]) grad_weight = steps.grad_weight(terms, c(first), grad_s(first), weight);
  if (need_bias) {
    const Tensor total = steps.empty(shape.vectors());
    launch_sum(shape.f64, grad_s(1), r, shape.vectors(), 1, steps.pointer(total), steps.stream());
    grad_bias = torch::stable::empty_like(*bias);
    launch_row_sums(shape.f64, steps.pointer(total), shape.out_capsules * shape.out_dim,
                    shape.batch, steps.pointer(grad_bias), steps.stream());
  }
  if (need_prior) {
    const Tensor total = steps.empty(shape.links());
    launch_sum(shape.f64, steps.item(all_links, r, shape.links()), r, shape.links(), 1,
               steps.pointer(total), steps.stream());
    grad_prior = steps.grad_prior(steps.pointer(total), *prior);
  }
  call.check();
  return {grad_u, grad_weight, grad_bias, grad_prior};
}

}  // namespace
}  // namespace lamina

#ifdef LAMINA_HOST_SHIM
STABLE_TORCH_LIBRARY_FRAGMENT(lamina_host, m) {
  m.def(lamina::dynamic_routing_forward_schema);
  m.def(lamina::dynamic_routing_backward_schema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(LAMINA_CUDA_NAMESPACE, LAMINA_CUDA_KEY, m) {
  m.impl("dynamic_routing_forward", TORCH_BOX(&lamina::forward));
  m.impl("dynamic_routing_backward", TORCH_BOX(&lamina::backward));
}

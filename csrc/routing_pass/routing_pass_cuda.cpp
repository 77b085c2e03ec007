#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "dynamic_routing/routing_cuda_steps.h"
#include "routing_pass/routing_pass.h"
#include "routing_pass/routing_pass_checks.h"

namespace lamina {
namespace {

// to = scale v, batch last.
void load_scaled(const CudaRoutingSteps& steps, const Tensor& v, double scale, void* to) {
  const Tensor contiguous = torch::stable::contiguous(v);
  const Tensor last = steps.empty(steps.shape().vectors());
  steps.vectors_in(steps.pointer(contiguous), steps.pointer(last));
  launch_sum(steps.shape().f64, steps.pointer(last), 1, steps.shape().vectors(), scale, to,
             steps.stream());
}

Tensor forward(const Tensor& u, const Tensor& weight, const MaybeTensor& v,
               const MaybeTensor& prior, const MaybeTensor& mask, const std::string& coupling_dim,
               bool leaky, double scale) {
  const CudaCall call(u);
  const CudaRoutingSteps steps(call, u, weight, prior, mask, coupling_dim, leaky);
  check_routing_pass_v(u, weight, v);
  const Tensor links = steps.empty(steps.shape().links());
  const Tensor vectors = steps.empty(steps.shape().vectors());
  if (v) load_scaled(steps, *v, scale, steps.pointer(vectors));
  steps.couple(v ? steps.pointer(vectors) : nullptr, true, steps.pointer(links));
  const Tensor output = steps.add_up(steps.weighted_sum(steps.pointer(links)), 1);
  call.check();
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& u,
                                                    const Tensor& weight, const MaybeTensor& v,
                                                    const MaybeTensor& prior,
                                                    const MaybeTensor& mask, const Tensor& s,
                                                    const std::string& coupling_dim, bool leaky,
                                                    double scale, const std::vector<bool>& needs) {
  const CudaCall call(u);
  const CudaRoutingSteps steps(call, u, weight, prior, mask, coupling_dim, leaky);
  check_routing_pass_backward(grad, u, weight, v, s, needs);
  const RoutingShape& shape = steps.shape();
  const bool need_v = needs[2] && v, need_prior = needs[3] && prior;
  // The gradient of the votes is c grad + beta (scale v).
  const Tensor all_links = steps.empty(2 * shape.links());
  const Tensor all_vectors = steps.empty(2 * shape.vectors());
  void *c = steps.pointer(all_links), *beta = steps.item(all_links, 1, shape.links());
  void* grad_s = steps.pointer(all_vectors);
  void* routed = v ? steps.item(all_vectors, 1, shape.vectors()) : nullptr;
  const Tensor contiguous = torch::stable::contiguous(grad);
  steps.vectors_in(steps.pointer(contiguous), grad_s);
  if (v) load_scaled(steps, *v, scale, routed);
  const bool need_logits = v || need_prior;
  steps.couple(routed, !need_logits, c);
  if (need_logits) steps.couple_backward(grad_s, c, beta);

  Tensor grad_u, grad_weight, grad_v, grad_prior;
  const int terms = v ? 2 : 1;
  if (needs[0]) grad_u = steps.grad_u(terms, c, grad_s);
  if (needs[1]) grad_weight = steps.grad_weight(terms, c, grad_s, weight);
  if (need_v) grad_v = steps.add_up(steps.weighted_sum(beta), scale);
  if (need_prior) grad_prior = steps.grad_prior(beta, *prior);
  call.check();
  return {grad_u, grad_weight, grad_v, grad_prior};
}

}  // namespace
}  // namespace lamina

#ifdef LAMINA_HOST_SHIM
STABLE_TORCH_LIBRARY_FRAGMENT(lamina_host, m) {
  m.def(lamina::routing_pass_forward_schema);
  m.def(lamina::routing_pass_backward_schema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(LAMINA_CUDA_NAMESPACE, LAMINA_CUDA_KEY, m) {
  m.impl("routing_pass_forward", TORCH_BOX(&lamina::forward));
  m.impl("routing_pass_backward", TORCH_BOX(&lamina::backward));
}

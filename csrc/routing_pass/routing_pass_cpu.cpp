#include <torch/csrc/stable/library.h>

#include "dynamic_routing/routing_glue.h"
#include "routing_pass/routing_pass.h"
#include "routing_pass/routing_pass_checks.h"

namespace lamina {
namespace {

Tensor forward(const Tensor& u, const Tensor& weight, const MaybeTensor& v,
               const MaybeTensor& prior, const MaybeTensor& mask, const std::string& coupling_dim,
               bool leaky, double scale) {
  RoutingForward args{};
  args.inputs = routing_inputs(u, weight, prior, mask, coupling_dim, leaky, scale);
  check_routing_pass_v(u, weight, v);
  args.v = data_or_null(v);
  const RoutingInputs& in = args.inputs;
  Tensor s = empty_for_routing(u, {in.batch, in.out_capsules, in.out_dim});
  args.s = s.data_ptr();
  run_routing_forward(args);
  return s;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& u,
                                                    const Tensor& weight, const MaybeTensor& v,
                                                    const MaybeTensor& prior,
                                                    const MaybeTensor& mask, const Tensor& s,
                                                    const std::string& coupling_dim, bool leaky,
                                                    double scale, std::vector<bool> needs) {
  RoutingBackward args{};
  args.inputs = routing_inputs(u, weight, prior, mask, coupling_dim, leaky, scale);
  check_routing_pass_backward(grad, u, weight, v, s, needs);
  args.v = data_or_null(v);
  const Tensor dense = as_contiguous(grad);
  args.s = s.data_ptr();
  args.grad = dense.data_ptr();
  RoutingGradients gradients(args, u, weight, prior, needs[0], needs[1], needs[3]);
  Tensor grad_v;
  if (needs[2] && v) {
    grad_v = torch::stable::empty_like(*v);
    args.grad_v = grad_v.data_ptr();
  }
  run_routing_backward(args);
  return {gradients.u, gradients.weight, grad_v, gradients.prior};
}

}  // namespace
}  // namespace lamina

STABLE_TORCH_LIBRARY_FRAGMENT(lamina, m) {
  m.def(lamina::routing_pass_forward_schema);
  m.def(lamina::routing_pass_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(lamina, CPU, m) {
  m.impl("routing_pass_forward", TORCH_BOX(&lamina::forward));
  m.impl("routing_pass_backward", TORCH_BOX(&lamina::backward));
}

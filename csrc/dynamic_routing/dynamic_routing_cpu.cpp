#include <torch/csrc/stable/library.h>

#include "dynamic_routing/dynamic_routing.h"
#include "dynamic_routing/dynamic_routing_checks.h"
#include "dynamic_routing/routing_glue.h"

namespace lamina {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& weight,
                                           const MaybeTensor& bias, const MaybeTensor& prior,
                                           const MaybeTensor& mask, int64_t iterations,
                                           const std::string& coupling_dim, bool leaky,
                                           bool accumulate, double scale, const std::string& squash,
                                           double eps, bool save, bool return_couplings) {
  RoutingForward args{};
  args.inputs = routing_inputs(u, weight, prior, mask, coupling_dim, leaky, scale);
  check_dynamic_routing_forward(u, weight, bias, iterations);
  const RoutingInputs& in = args.inputs;
  args.iterations = static_cast<int>(iterations);
  args.accumulate = accumulate;
  args.squash = squash_kind(squash);
  args.eps = eps;
  args.bias = data_or_null(bias);
  const Tensor v = empty_for_routing(u, {in.batch, in.out_capsules, in.out_dim});
  const Tensor s =
      empty_for_routing(u, {save ? iterations : 0, in.batch, in.out_capsules, in.out_dim});
  const Tensor couplings =
      empty_for_routing(u, {return_couplings ? in.batch : 0, in.in_capsules, in.out_capsules});
  args.output = v.data_ptr();
  if (save) args.s = s.data_ptr();
  if (return_couplings) args.couplings = couplings.data_ptr();
  run_routing_forward(args);
  return {v, s, couplings};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& u, const Tensor& weight, const MaybeTensor& bias,
    const MaybeTensor& prior, const MaybeTensor& mask, const Tensor& s,
    const std::string& coupling_dim, bool detach_votes, bool leaky, bool accumulate, double scale,
    const std::string& squash, double eps, std::vector<bool> needs) {
  RoutingBackward args{};
  args.inputs = routing_inputs(u, weight, prior, mask, coupling_dim, leaky, scale);
  check_dynamic_routing_backward(grad, u, weight, bias, s, needs);
  const Tensor dense = as_contiguous(grad);
  args.iterations = static_cast<int>(s.size(0));
  args.accumulate = accumulate;
  args.detach_votes = detach_votes;
  args.squash = squash_kind(squash);
  args.eps = eps;
  args.s = s.data_ptr();
  args.grad = dense.data_ptr();
  RoutingGradients gradients(args, u, weight, prior, needs[0], needs[1], needs[3]);
  Tensor grad_bias;
  if (needs[2] && bias) {
    grad_bias = torch::stable::empty_like(*bias);
    args.grad_bias = grad_bias.data_ptr();
  }
  run_routing_backward(args);
  return {gradients.u, gradients.weight, grad_bias, gradients.prior};
}

}  // namespace
}  // namespace lamina

STABLE_TORCH_LIBRARY_FRAGMENT(lamina, m) {
  m.def(lamina::dynamic_routing_forward_schema);
  m.def(lamina::dynamic_routing_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(lamina, CPU, m) {
  m.impl("dynamic_routing_forward", TORCH_BOX(&lamina::forward));
  m.impl("dynamic_routing_backward", TORCH_BOX(&lamina::backward));
}

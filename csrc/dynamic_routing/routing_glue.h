#pragma once

#include <string>

#include "common/parallel_torch.h"
#include "common/workspace.h"
#include "dynamic_routing/dynamic_routing_kernels.h"
#include "dynamic_routing/routing_checks.h"

// From tensors to what the CPU kernels take; for the ops dynamic_routing and routing_pass.

namespace lamina {

inline const void* data_or_null(const MaybeTensor& tensor) {
  return tensor ? tensor->data_ptr() : nullptr;
}

inline RoutingInputs routing_inputs(const Tensor& u, const Tensor& weight, const MaybeTensor& prior,
                                    const MaybeTensor& mask, const std::string& coupling_dim,
                                    bool leaky, double scale) {
  check_routing(u, weight, prior, mask);
  const bool shared = weight.dim() == 3;
  const int64_t last = weight.dim() - 1;
  RoutingInputs in{};
  in.f64 = u.scalar_type() == ScalarType::Double;
  in.batch = u.size(0);
  in.in_capsules = u.size(1);
  in.in_dim = u.size(2);
  in.out_capsules = weight.size(0);
  in.out_dim = weight.size(last - 1);
  in.u = u.data_ptr();
  for (int d = 0; d < 3; ++d) in.u_stride[d] = u.stride(d);
  in.weight = weight.data_ptr();
  in.weight_stride[0] = weight.stride(0);
  in.weight_stride[1] = shared ? 0 : weight.stride(1);
  in.weight_stride[2] = weight.stride(last - 1);
  in.weight_stride[3] = weight.stride(last);
  in.shared = shared;
  in.prior = data_or_null(prior);
  in.prior_per_sample = prior && prior->dim() == 3;
  in.mask = data_or_null(mask);
  in.mask_per_sample = mask && mask->dim() == 2;
  in.over_in = coupling_dim == "in";
  in.leaky = leaky;
  in.scale = scale;
  return in;
}

inline Tensor empty_for_routing(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}

inline void run_routing_forward(const RoutingForward& args) {
  const Parallel parallel = torch_threads();
  void* scratch = workspace(LAMINA_DISPATCH(routing_forward_scratch)(args, parallel.threads));
  LAMINA_DISPATCH(routing_forward)(args, scratch, parallel);
}

inline void run_routing_backward(const RoutingBackward& args) {
  const Parallel parallel = torch_threads();
  void* scratch = workspace(LAMINA_DISPATCH(routing_backward_scratch)(args, parallel.threads));
  LAMINA_DISPATCH(routing_backward)(args, scratch, parallel);
}

// The gradients that every backward has in common.
struct RoutingGradients {
  Tensor u, weight, prior;

  RoutingGradients(RoutingBackward& args, const Tensor& given_u, const Tensor& given_weight,
                   const MaybeTensor& given_prior, bool need_u, bool need_weight, bool need_prior) {
    if (need_u) {
      u = empty_for_routing(given_u, {given_u.size(0), given_u.size(1), given_u.size(2)});
      prefer_huge_pages(u);
      args.grad_u = u.data_ptr();
    }
    if (need_weight) {
      weight = torch::stable::empty_like(given_weight);
      map_pages(prefer_huge_pages(weight), torch_threads());
      args.grad_weight = weight.data_ptr();
      const int64_t last = weight.dim() - 1;
      args.grad_weight_stride[0] = weight.stride(0);
      args.grad_weight_stride[1] = last == 2 ? 0 : weight.stride(1);
      args.grad_weight_stride[2] = weight.stride(last - 1);
      args.grad_weight_stride[3] = weight.stride(last);
    }
    if (need_prior && given_prior) {
      prior = torch::stable::empty_like(*given_prior);
      args.grad_prior = prior.data_ptr();
    }
  }
};

}  // namespace lamina

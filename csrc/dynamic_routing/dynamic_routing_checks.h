#pragma once

#include <vector>

#include "dynamic_routing/routing_checks.h"

// What only dynamic_routing takes, not routing_pass; after check_routing.

namespace lamina {

inline void check_dynamic_routing_bias(const Tensor& u, const Tensor& weight,
                                       const MaybeTensor& bias) {
  const int64_t outs = weight.size(0), dim = weight.size(weight.dim() - 2);
  if (bias) check_routed("dynamic_routing: bias", *bias, u, {outs, dim});
}

inline void check_dynamic_routing_forward(const Tensor& u, const Tensor& weight,
                                          const MaybeTensor& bias, int64_t iterations) {
  check_dynamic_routing_bias(u, weight, bias);
  STD_TORCH_CHECK(iterations > 0 && iterations < 1 << 16,
                  "dynamic_routing: iterations must be positive, got ", iterations);
}

inline void check_dynamic_routing_backward(const Tensor& grad, const Tensor& u,
                                           const Tensor& weight, const MaybeTensor& bias,
                                           const Tensor& s, const std::vector<bool>& needs) {
  check_dynamic_routing_bias(u, weight, bias);
  check_needs("dynamic_routing_backward", needs, 4);
  check_vectors("dynamic_routing_backward: grad", grad, u, weight);
  STD_TORCH_CHECK(s.dim() == 4 && s.size(0) > 0,
                  "dynamic_routing_backward: s must be [iterations, B, O, E], got ",
                  shown(s.sizes()));
  check_routed("dynamic_routing_backward: s", s, u,
               {s.size(0), u.size(0), weight.size(0), weight.size(weight.dim() - 2)});
}

}  // namespace lamina

#pragma once

#include <vector>

#include "dynamic_routing/routing_checks.h"

// What only routing_pass takes, not dynamic_routing; after check_routing.

namespace lamina {

inline void check_routing_pass_v(const Tensor& u, const Tensor& weight, const MaybeTensor& v) {
  if (!v) return;
  check_vectors("routing_pass: v", *v, u, weight);
  check_contiguous("routing_pass: v", *v);
}

inline void check_routing_pass_backward(const Tensor& grad, const Tensor& u, const Tensor& weight,
                                        const MaybeTensor& v, const Tensor& s,
                                        const std::vector<bool>& needs) {
  check_routing_pass_v(u, weight, v);
  check_needs("routing_pass_backward", needs, 4);
  check_vectors("routing_pass_backward: grad", grad, u, weight);
  check_vectors("routing_pass_backward: s", s, u, weight);
  check_contiguous("routing_pass_backward: s", s);
}

}  // namespace lamina

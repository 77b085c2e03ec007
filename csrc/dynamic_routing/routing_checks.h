#pragma once

#include <optional>

#include "common/check.h"

// What dynamic_routing.h says of its arguments, demanded; for the glue of dynamic_routing and
// routing_pass on every device.

namespace lamina {

using MaybeTensor = std::optional<Tensor>;

// One that lies beside u and is read as it lies.
inline void check_routed(const char* name, const Tensor& tensor, const Tensor& u, Sizes sizes) {
  check_alike(name, tensor, u, sizes);
  check_contiguous(name, tensor);
}

inline void check_routing(const Tensor& u, const Tensor& weight, const MaybeTensor& prior,
                          const MaybeTensor& mask) {
  STD_TORCH_CHECK(u.scalar_type() == ScalarType::Float || u.scalar_type() == ScalarType::Double,
                  "dynamic routing takes float32 and float64");
  check_alike("dynamic routing: weight", weight, u);
  const int64_t last = weight.dim() - 1;
  STD_TORCH_CHECK(u.dim() == 3 && (last == 2 || (last == 3 && weight.size(1) == u.size(1))) &&
                      weight.size(last) == u.size(2),
                  "dynamic routing takes u [B, I, D] and weight [O, I, E, D] or [O, E, D], got ",
                  shown(u.sizes()), " and ", shown(weight.sizes()));
  const int64_t batch = u.size(0), ins = u.size(1), outs = weight.size(0);
  if (prior && prior->dim() == 2)
    check_routed("dynamic routing: prior", *prior, u, {ins, outs});
  else if (prior)
    check_routed("dynamic routing: prior", *prior, u, {batch, ins, outs});
  if (mask && mask->dim() == 1)
    check_routed("dynamic routing: mask", *mask, u, {ins});
  else if (mask)
    check_routed("dynamic routing: mask", *mask, u, {batch, ins});
}

// A tensor [B, O, E], of any strides.
inline void check_vectors(const char* name, const Tensor& vectors, const Tensor& u,
                          const Tensor& weight) {
  check_alike(name, vectors, u, {u.size(0), weight.size(0), weight.size(weight.dim() - 2)});
}

}  // namespace lamina

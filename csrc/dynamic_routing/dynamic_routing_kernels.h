#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"
#include "squash/squash.h"

namespace lamina {

// What one step of dot-product routing reads. Pointers are to float, or to double where `f64`;
// strides count elements; an optional tensor is null. See dynamic_routing.h for the shapes.
struct RoutingInputs {
  bool f64;
  int64_t batch, in_capsules, out_capsules, in_dim, out_dim;
  const void* u;
  int64_t u_stride[3];  // batch, in-capsule, dimension
  const void* weight;
  int64_t weight_stride[4];  // out-capsule, in-capsule, out-dimension, in-dimension
  bool shared;               // the weight has no in-capsule dimension
  const void* prior;
  bool prior_per_sample;
  const void* mask;
  bool mask_per_sample;
  bool over_in, leaky;
  double scale;
};

// Either all iterations of dynamic routing, or one routing pass with the given v (iterations = 0).
struct RoutingForward {
  RoutingInputs inputs;
  int iterations;
  bool accumulate;
  SquashKind squash;
  double eps;
  const void* bias;
  const void* v;    // routing pass only, may be null
  void* s;          // [iterations, B, O, E] or null; routing pass: its result [B, O, E]
  void* output;     // [B, O, E], dynamic routing only
  void* couplings;  // [B, I, O] or null
};

struct RoutingBackward {
  RoutingInputs inputs;
  int iterations;
  bool accumulate, detach_votes;
  SquashKind squash;
  double eps;
  const void* v;
  const void* s;
  const void* grad;  // [B, O, E]
  void* grad_u;      // contiguous; null where not needed, as all below
  void* grad_weight;
  int64_t grad_weight_stride[4];
  void* grad_bias;
  void* grad_prior;
  void* grad_v;  // routing pass only
};

}  // namespace lamina

// The scratch functions say how many bytes (64-byte aligned) the kernel works in.
LAMINA_KERNEL(size_t routing_forward_scratch(const RoutingForward&, int threads);
              void routing_forward(const RoutingForward&, void* scratch, const Parallel&);
              size_t routing_backward_scratch(const RoutingBackward&, int threads);
              void routing_backward(const RoutingBackward&, void* scratch, const Parallel&);)

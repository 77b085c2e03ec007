#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/ceil_div.h"
#include "squash/squash.h"

// The steps that dynamic_routing and routing_pass are made of, on a GPU. The votes W_ij u_i are
// computed anew wherever they are needed, in registers, never stored.
//
// All arrays have the batch as their last dimension, so that the lanes of a warp are samples: what
// belongs to a sample is read coalesced, a weight is one broadcast for the warp.
//   u        [I, D, B]        weight  [O, I, D8, E8], the last two padded with zeros to octets;
//   vectors  [O, E, B]                I = 1 where it is shared
//   links    [I, O, B]: logits, coupling coefficients and what is computed like them
// Sums over in-capsules are made in two stages, in fixed order, without atomics.

namespace lamina {

struct RoutingShape {
  bool f64;
  int64_t batch, in_capsules, out_capsules, in_dim, out_dim;
  bool shared;

  LAMINA_HOST_DEVICE int64_t padded_in() const { return ceil_div<int64_t>(in_dim, 8) * 8; }
  LAMINA_HOST_DEVICE int64_t padded_out() const { return ceil_div<int64_t>(out_dim, 8) * 8; }
  LAMINA_HOST_DEVICE int64_t weight_capsules() const { return shared ? 1 : in_capsules; }
  LAMINA_HOST_DEVICE int64_t vectors() const { return out_capsules * out_dim * batch; }
  LAMINA_HOST_DEVICE int64_t links() const { return in_capsules * out_capsules * batch; }
  int64_t packed_weights() const {
    return out_capsules * weight_capsules() * padded_in() * padded_out();
  }
};

// An optional factor or summand of the links: its element of in-capsule i, out-capsule j, sample b
// is data[i * in_stride + j * out_stride + b * batch_stride].
struct RoutingLinks {
  const void* data;
  int64_t in_stride, out_stride, batch_stride;
};

// to[n, column, row] = from[n, row, column], for n < count
void launch_transpose(bool f64, const void* from, int64_t count, int64_t rows, int64_t columns,
                      void* to, cudaStream_t stream);

// strides: of out-capsule, in-capsule, out-dimension, in-dimension.
void launch_pack_weight(const RoutingShape& shape, const void* weight, const int64_t (&strides)[4],
                        void* packed, cudaStream_t stream);

// links_ij = factor_i (summand_ij + <W_ij u_i, vector_j>); a null vector stands for 0.
void launch_agreement(const RoutingShape& shape, const void* u, const void* weight,
                      const void* vectors, const RoutingLinks& summand, const RoutingLinks& factor,
                      void* links, cudaStream_t stream);

// In place: logits become their softmax over the out-capsules, or the in-capsules, times the mask.
void launch_routing_softmax(const RoutingShape& shape, bool over_in, bool leaky,
                            const RoutingLinks& mask, void* links, cudaStream_t stream);

// In place: grad becomes softmax (grad - sum of softmax grad); afterwards softmax *= mask.
void launch_routing_softmax_backward(const RoutingShape& shape, bool over_in,
                                     const RoutingLinks& mask, void* softmax, void* grad,
                                     cudaStream_t stream);

// The partial sums over routing_chunks() chunks of in-capsules of links_ij W_ij u_i, each an array
// of vectors.
int64_t routing_chunks(const RoutingShape& shape);
void launch_weighted_sum(const RoutingShape& shape, const void* u, const void* weight,
                         const void* links, void* partial, cudaStream_t stream);

struct RoutingSquash {
  SquashKind kind;
  double eps;
};

// s = sum of `count` partial sums + bias; v = squash(s); routed = before + scale v. saved and
// output take s and v with the batch first. Pointers but s may be null; s may lie where a single
// sum does.
struct RoutingForwardStep {
  const void* bias;
  void *s, *saved, *output;
  const void* before;
  void* routed;
  double scale;
};
void launch_routing_forward_step(const RoutingShape& shape, const RoutingSquash& squash,
                                 const void* partial, int64_t count, const RoutingForwardStep& to,
                                 cudaStream_t stream);

// grad_v = keep grad_v + scale sum of the partial sums, or as it is where they are null;
// grad_s = the gradient of squash at s, for grad_v.
void launch_routing_backward_step(const RoutingShape& shape, const RoutingSquash& squash,
                                  const void* partial, double scale, bool keep, const void* s,
                                  void* grad_v, void* grad_s, cudaStream_t stream);

// The gradient of the votes is the sum over the terms t of links^t_ij vector^t_j. Both arrays hold
// one term after the other. grad_u is [I, D, B]; grad_weight has the given strides, and for a
// shared weight room for routing_chunks() gradients, to be added up with launch_sum.
void launch_routing_grad_u(const RoutingShape& shape, int terms, const void* links,
                           const void* vectors, const void* weight, void* grad_u,
                           cudaStream_t stream);
void launch_routing_grad_weight(const RoutingShape& shape, int terms, const void* links,
                                const void* vectors, const void* u, void* grad_weight,
                                const int64_t (&strides)[4], cudaStream_t stream);

// result[i] = scale times the sum over n < count of parts[n, i]
void launch_sum(bool f64, const void* parts, int64_t count, int64_t size, double scale,
                void* result, cudaStream_t stream);
// result[row] = sum over columns of matrix[row, column]
void launch_row_sums(bool f64, const void* matrix, int64_t rows, int64_t columns, void* result,
                     cudaStream_t stream);

}  // namespace lamina

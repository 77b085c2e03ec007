#pragma once

#include <string>

#include "common/cuda_glue.h"
#include "dynamic_routing/routing_checks.h"
#include "dynamic_routing/routing_cuda.h"

// The steps of routing_cuda.h on tensors; for the ops dynamic_routing and routing_pass.

namespace lamina {

class CudaRoutingSteps {
 public:
  CudaRoutingSteps(const CudaCall& call, const Tensor& u, const Tensor& weight,
                   const MaybeTensor& prior, const MaybeTensor& mask,
                   const std::string& coupling_dim, bool leaky)
      : call_(call), like_(u), over_in_(coupling_dim == "in"), leaky_(leaky) {
    check_routing(u, weight, prior, mask);
    const bool shared = weight.dim() == 3;
    const int64_t last = weight.dim() - 1;
    shape_ = {u.scalar_type() == ScalarType::Double,
              u.size(0),
              u.size(1),
              weight.size(0),
              u.size(2),
              weight.size(last - 1),
              shared};
    u_ = transposed(torch::stable::contiguous(u), shape_.batch, shape_.in_capsules * shape_.in_dim);
    weight_ = empty(shape_.packed_weights());
    int64_t strides[4];
    strides_of(weight, strides);
    launch_pack_weight(shape_, pointer(weight), strides, pointer(weight_), stream());
    if (prior) {
      const bool each = prior->dim() == 3;
      prior_ = {pointer(*prior), shape_.out_capsules, 1,
                each ? shape_.in_capsules * shape_.out_capsules : 0};
    }
    if (mask) mask_ = {pointer(*mask), 1, 0, mask->dim() == 2 ? shape_.in_capsules : 0};
  }

  const RoutingShape& shape() const { return shape_; }
  cudaStream_t stream() const { return call_.stream(); }

  Tensor empty(int64_t count) const { return torch::stable::new_empty(like_, {count}); }
  Tensor empty_vectors() const {
    return torch::stable::new_empty(like_, {shape_.batch, shape_.out_capsules, shape_.out_dim});
  }

  void* pointer(const Tensor& tensor) const { return call_.pointer(tensor); }
  // Item `index` of an array of items of `size` elements.
  void* item(const Tensor& tensor, int64_t index, int64_t size) const {
    return static_cast<char*>(pointer(tensor)) + index * size * tensor.element_size();
  }

  // Between the layouts of the op's arguments, batch first, and of the steps, batch last.
  void transpose(const void* from, int64_t rows, int64_t columns, void* to,
                 int64_t count = 1) const {
    launch_transpose(shape_.f64, from, count, rows, columns, to, stream());
  }
  Tensor transposed(const Tensor& matrix, int64_t rows, int64_t columns) const {
    const Tensor result = empty(rows * columns);
    transpose(pointer(matrix), rows, columns, pointer(result));
    return result;
  }
  void vectors_in(const void* from, void* to, int64_t count = 1) const {
    transpose(from, shape_.batch, shape_.out_capsules * shape_.out_dim, to, count);
  }
  void vectors_out(const void* from, void* to) const {
    transpose(from, shape_.out_capsules * shape_.out_dim, shape_.batch, to);
  }
  void links_out(const void* from, void* to) const {
    transpose(from, shape_.in_capsules * shape_.out_capsules, shape_.batch, to);
  }

  // The coupling coefficients for the given vectors, which the scale is part of; null for 0.
  void couple(const void* vectors, bool masked, void* links) const {
    launch_agreement(shape_, pointer(u_), pointer(weight_), vectors, prior_, none, links, stream());
    launch_routing_softmax(shape_, over_in_, leaky_, masked ? mask_ : none, links, stream());
  }

  // From unmasked coefficients and the gradient of the weighted sum to the gradient of the logits;
  // the mask is applied to the coefficients on the way.
  void couple_backward(const void* grad_sums, void* coefficients, void* grad_logits) const {
    launch_agreement(shape_, pointer(u_), pointer(weight_), grad_sums, none, mask_, grad_logits,
                     stream());
    launch_routing_softmax_backward(shape_, over_in_, mask_, coefficients, grad_logits, stream());
  }

  // The partial sums of links_ij W_ij u_i.
  Tensor weighted_sum(const void* links) const {
    const Tensor partial = empty(routing_chunks(shape_) * shape_.vectors());
    launch_weighted_sum(shape_, pointer(u_), pointer(weight_), links, pointer(partial), stream());
    return partial;
  }
  // Their sum, batch first.
  Tensor add_up(const Tensor& partial, double scale) const {
    const Tensor last = empty(shape_.vectors()), sum = empty_vectors();
    launch_sum(shape_.f64, pointer(partial), routing_chunks(shape_), shape_.vectors(), scale,
               pointer(last), stream());
    vectors_out(pointer(last), pointer(sum));
    return sum;
  }

  Tensor grad_u(int terms, const void* links, const void* vectors) const {
    const int64_t rows = shape_.in_capsules * shape_.in_dim;
    const Tensor last = empty(rows * shape_.batch),
                 grad = torch::stable::new_empty(like_,
                                                 {shape_.batch, shape_.in_capsules, shape_.in_dim});
    launch_routing_grad_u(shape_, terms, links, vectors, pointer(weight_), pointer(last), stream());
    transpose(pointer(last), rows, shape_.batch, pointer(grad));
    return grad;
  }

  // In the layout of the weight.
  Tensor grad_weight(int terms, const void* links, const void* vectors,
                     const Tensor& weight) const {
    Tensor grad = torch::stable::empty_like(weight);
    int64_t strides[4];
    if (!shape_.shared) {
      strides_of(grad, strides);
      launch_routing_grad_weight(shape_, terms, links, vectors, pointer(u_), pointer(grad), strides,
                                 stream());
      return grad;
    }
    const int64_t size = shape_.out_capsules * shape_.out_dim * shape_.in_dim;
    const int64_t chunks = routing_chunks(shape_);
    const Tensor parts = empty(chunks * size);
    const Tensor sum =
        torch::stable::new_empty(like_, {shape_.out_capsules, shape_.out_dim, shape_.in_dim});
    const int64_t dense[4] = {shape_.out_dim * shape_.in_dim, size, shape_.in_dim, 1};
    launch_routing_grad_weight(shape_, terms, links, vectors, pointer(u_), pointer(parts), dense,
                               stream());
    launch_sum(shape_.f64, pointer(parts), chunks, size, 1, pointer(sum), stream());
    return torch::stable::copy_(grad, sum);
  }

  // In the shape of the prior, from its gradient as links.
  Tensor grad_prior(const void* links, const Tensor& prior) const {
    const Tensor grad = torch::stable::empty_like(prior);
    if (prior.dim() == 3)
      links_out(links, pointer(grad));
    else
      launch_row_sums(shape_.f64, links, shape_.in_capsules * shape_.out_capsules, shape_.batch,
                      pointer(grad), stream());
    return grad;
  }

 private:
  static constexpr RoutingLinks none{nullptr, 0, 0, 0};

  // Of out-capsule, in-capsule, out-dimension and in-dimension.
  void strides_of(const Tensor& weight, int64_t (&strides)[4]) const {
    const int64_t last = weight.dim() - 1;
    strides[0] = weight.stride(0);
    strides[1] = shape_.shared ? 0 : weight.stride(1);
    strides[2] = weight.stride(last - 1);
    strides[3] = weight.stride(last);
  }

  const CudaCall& call_;
  Tensor like_, u_, weight_;
  RoutingShape shape_;
  RoutingLinks prior_ = none, mask_ = none;
  bool over_in_, leaky_;
};

}  // namespace lamina

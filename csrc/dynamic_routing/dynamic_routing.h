#pragma once

// Dynamic routing between capsules (Sabour, Frosst, Hinton 2017). Python checks the arguments
// before any backend runs; all tensors have the dtype and device of u.
//
//   u       [B, I, D]                                          any strides
//   weight  [O, I, E, D], or [O, E, D] where every in-capsule shares it;  any strides: the public
//           layouts arrive as permuted views, and a kernel reads them where they lie
//   bias    [O, E]      contiguous
//   prior   [I, O] or [B, I, O]   contiguous: the routing logits before the first iteration
//   mask    [I] or [B, I]         contiguous: multiplies the coupling coefficients of an in-capsule
//   v       [B, O, E]   contiguous
//   s       [iterations, B, O, E] contiguous: what `save` keeps for the backward, bias included
//   couplings [B, I, O] contiguous: those of the last iteration, mask included
// s and couplings that are not asked for have no iterations and no samples; a gradient is
// undefined.
//
//   V^1 = 0;  logit_ij = prior_ij + scale <W_ij u_i, V^t_j>
//   c^t = softmax(logit) * mask_i: over the out-capsules ("out") or the in-capsules ("in") of
//         coupling_dim; leaky adds one more logit 0 to the softmax's sum and drops its coefficient
//   s^t_j = sum_i c^t_ij W_ij u_i + bias_j;  v^t = squash(s^t)
//   V^{t+1} = V^t + v^t, or v^t where `accumulate` is false
//
// Backward, for t = iterations .. 1, with R = 0 and sm the softmax before the mask:
//   sbar^t = squash_backward(s^t, last ? grad : R);  grad_bias += sum_b sbar^t
//   x_ij = mask_i <W_ij u_i, sbar^t_j>
//   beta^t_ij = sm_ij (x_ij - sum_k sm_ik x_ik), "in": sm_ij (x_ij - sum_k sm_kj x_kj)
//   R_j += scale sum_i beta_ij W_ij u_i (not accumulate: R is this sum);  grad_prior += beta^t
//   X_ij = sum_t [c^t_ij sbar^t_j + scale beta^t_ij V^t_j], the gradient of the votes
//   grad_u_i = sum_j W_ij^T X_ij;  grad_weight_ij = sum_b X_ij u_i^T
// detach_votes: the votes are constants except in the last weighted sum, so X = c^r sbar^r; the
// iterations before the last matter only to grad_bias and grad_prior.
// grad_u is contiguous, grad_weight has the strides of weight if that is dense (else contiguous).

namespace lamina {

constexpr char dynamic_routing_forward_schema[] =
    "dynamic_routing_forward(Tensor u, Tensor weight, Tensor? bias, Tensor? prior, Tensor? mask, "
    "int iterations, str coupling_dim, bool leaky, bool accumulate, float scale, str squash, "
    "float eps, bool save, bool return_couplings) -> (Tensor v, Tensor s, Tensor couplings)";

// needs = (u, weight, bias, prior)
constexpr char dynamic_routing_backward_schema[] =
    "dynamic_routing_backward(Tensor grad, Tensor u, Tensor weight, Tensor? bias, Tensor? prior, "
    "Tensor? mask, Tensor s, str coupling_dim, bool detach_votes, bool leaky, bool accumulate, "
    "float scale, str squash, float eps, bool[4] needs) "
    "-> (Tensor grad_u, Tensor grad_weight, Tensor grad_bias, Tensor grad_prior)";

}  // namespace lamina

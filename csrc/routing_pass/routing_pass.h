#pragma once

// routing_pass: one step of dot-product routing, s_j = sum_i c_ij W_ij u_i with
// c = softmax(prior + scale <W_ij u_i, v_j>) * mask. The votes W_ij u_i are not kept.
// Shapes and the meaning of the options are those of dynamic_routing.h; v is [B, O, E].

namespace lamina {

constexpr char routing_pass_forward_schema[] =
    "routing_pass_forward(Tensor u, Tensor weight, Tensor? v, Tensor? prior, Tensor? mask, "
    "str coupling_dim, bool leaky, float scale) -> Tensor";

// needs = (u, weight, v, prior)
constexpr char routing_pass_backward_schema[] =
    "routing_pass_backward(Tensor grad, Tensor u, Tensor weight, Tensor? v, Tensor? prior, "
    "Tensor? mask, Tensor s, str coupling_dim, bool leaky, float scale, bool[4] needs) "
    "-> (Tensor grad_u, Tensor grad_weight, Tensor grad_v, Tensor grad_prior)";

}  // namespace lamina

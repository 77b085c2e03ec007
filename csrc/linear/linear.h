#pragma once

// y = act(x Wᵀ + b). `saved` is what the derivative of the activation needs: a bit mask [M,
// ceil(N/8)], the pre-activation, or nothing (see common/activation.h).

namespace lamina {

constexpr char linear_forward_schema[] =
    "linear_forward(Tensor input, Tensor weight, Tensor? bias, str activation, float parameter, "
    "bool save) -> (Tensor, Tensor)";
constexpr char linear_backward_schema[] =
    "linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor saved, str activation, "
    "float parameter, bool[3] needs) -> (Tensor, Tensor, Tensor)";

}  // namespace lamina

#pragma once

#include <string_view>

// The activations that kernels fuse, and what each saves of the forward pass for its derivative.

namespace lamina {

enum class Activation { none, relu, threshold, leaky_relu, gelu, gelu_tanh, silu, tanh, sigmoid };

constexpr std::string_view activation_names[] = {
    "none", "relu", "threshold", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"};

// False for a name that is not among them.
inline bool parse_activation(std::string_view name, Activation& activation) {
  for (int i = 0; i < 9; ++i) {
    if (name != activation_names[i]) continue;
    activation = static_cast<Activation>(i);
    return true;
  }
  return false;
}

// One bit an element: where the derivative is 1.
constexpr bool saves_mask(Activation activation) {
  return activation == Activation::relu || activation == Activation::threshold ||
         activation == Activation::leaky_relu;
}

// The pre-activation z.
constexpr bool saves_preactivation(Activation activation) {
  return activation == Activation::gelu || activation == Activation::gelu_tanh ||
         activation == Activation::silu;
}

// The output, which the caller has anyway.
constexpr bool saves_output(Activation activation) {
  return activation == Activation::tanh || activation == Activation::sigmoid;
}

}  // namespace lamina

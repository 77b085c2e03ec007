#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "common/activation.h"

namespace lamina {

// The bit of the mask: whether the derivative at z is 1. At NaN it is for relu and threshold and is
// not for leaky_relu, as in torch.
template <typename Number>
__device__ __forceinline__ bool passes(Activation activation, Number parameter, Number z) {
  if (activation == Activation::leaky_relu) return z > 0;
  return !(z <= (activation == Activation::threshold ? parameter : Number(0)));
}

template <typename Number>
__device__ __forceinline__ Number sigmoid(Number z) {
  return 1 / (1 + exp(-z));
}

// The distribution function and the density of the standard normal distribution.
template <typename Number>
__device__ __forceinline__ Number normal_cdf(Number z) {
  return Number(0.5) * (1 + erf(z * Number(0.70710678118654752440)));
}
template <typename Number>
__device__ __forceinline__ Number normal_density(Number z) {
  return Number(0.39894228040143267794) * exp(Number(-0.5) * z * z);
}

// gelu_tanh(z) = z/2 (1 + tanh(u)), u = sqrt(2/pi) (z + 0.044715 z^3).
template <typename Number>
__device__ __forceinline__ Number gelu_tanh_argument(Number z) {
  return Number(0.79788456080286535588) * z * (1 + Number(0.044715) * z * z);
}

// Applies the activation to all values; the choice is made once for them.
template <typename Number, int count>
__device__ __forceinline__ void activate(Activation activation, Number parameter,
                                         Number (&values)[count]) {
  const auto each = [&](auto function) {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = function(values[i]);
  };
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
    case Activation::threshold:
      return each([=](Number z) { return passes(activation, parameter, z) ? z : Number(0); });
    case Activation::leaky_relu:
      return each([=](Number z) { return passes(activation, parameter, z) ? z : parameter * z; });
    case Activation::gelu:
      return each([](Number z) { return z * normal_cdf(z); });
    case Activation::gelu_tanh:
      return each([](Number z) { return Number(0.5) * z * (1 + tanh(gelu_tanh_argument(z))); });
    case Activation::silu:
      return each([](Number z) { return z / (1 + exp(-z)); });
    case Activation::tanh:
      return each([](Number z) { return tanh(z); });
    case Activation::sigmoid:
      return each([](Number z) { return sigmoid(z); });
  }
}

// Multiplies each gradient by the derivative. `kept` holds the bits of a mask, or `saved` holds z
// or, for tanh and sigmoid, the output.
template <typename Number, int count>
__device__ __forceinline__ void differentiate(Activation activation, Number parameter,
                                              unsigned kept, const Number (&saved)[count],
                                              Number (&grad)[count]) {
  const auto each = [&](auto derivative) {
#pragma unroll
    for (int i = 0; i < count; ++i) grad[i] *= derivative(saved[i]);
  };
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
    case Activation::threshold:
    case Activation::leaky_relu: {
      const bool leaky = activation == Activation::leaky_relu;
#pragma unroll
      for (int i = 0; i < count; ++i)
        if (!(kept >> i & 1)) grad[i] = leaky ? parameter * grad[i] : Number(0);
      return;
    }
    case Activation::gelu:
      return each([](Number z) { return normal_cdf(z) + z * normal_density(z); });
    case Activation::gelu_tanh:
      return each([](Number z) {
        const Number t = tanh(gelu_tanh_argument(z));
        const Number slope = Number(0.79788456080286535588) * (1 + Number(0.134145) * z * z);
        return Number(0.5) * (1 + t + z * (1 - t * t) * slope);
      });
    case Activation::silu:
      return each([](Number z) {
        const Number s = sigmoid(z);
        return s * (1 + z * (1 - s));
      });
    case Activation::tanh:
      return each([](Number y) { return 1 - y * y; });
    case Activation::sigmoid:
      return each([](Number y) { return y * (1 - y); });
  }
}

}  // namespace lamina

#pragma once

#include "common/activation.h"
#include "common/vec.h"

// Activations and their derivatives on vectors. float has its own polynomials (errors of 1 to 2
// units in the last place); double asks libm, lane by lane.

namespace lamina {
namespace LAMINA_ISA {
namespace {

inline Vector<float> absolute(Vector<float> x) {
  return (Vector<float>)((Mask<float>)x & 0x7fffffff);
}
// The magnitude of x, the sign of `sign`.
inline Vector<float> copy_sign(Vector<float> x, Vector<float> sign) {
  return (Vector<float>)(((Mask<float>)x & 0x7fffffff) | ((Mask<float>)sign & INT32_MIN));
}
inline Vector<float> power_of_two(Mask<float> exponent) {
  return (Vector<float>)((exponent + 127) << 23);
}

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2; 2^n in two factors, so that it may over- or underflow.
inline Vector<float> exp(Vector<float> x) {
  x = x > 89.0f ? Vector<float>{} + 89.0f : x;
  x = x < -104.0f ? Vector<float>{} - 104.0f : x;
  const Vector<float> round = Vector<float>{} + 0x1.8p23f;
  const Vector<float> n = (x * 0x1.715476p0f + round) - round;
  const Vector<float> r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  const Vector<float> p =
      (((1.381460228e-03f * r + 8.368715644e-03f) * r + 4.166838899e-02f) * r + 1.666652113e-01f) *
          r +
      4.999999404e-01f;
  const Vector<float> exp_r = 1.0f + (r + r * r * p);
  const Mask<float> exponent = __builtin_convertvector(n, Mask<float>), half = exponent >> 1;
  return exp_r * power_of_two(half) * power_of_two(exponent - half);
}

inline Vector<float> tanh(Vector<float> x) {
  const Vector<float> e = exp(-2.0f * absolute(x));
  const Vector<float> far = 1.0f - 2.0f * e / (1.0f + e);
  const Vector<float> s = x * x;
  Vector<float> p = 1.214707081e-04f * s - 8.411371964e-04f;
  p = p * s + 3.078594338e-03f;
  p = p * s - 8.595114574e-03f;
  p = p * s + 2.178473026e-02f;
  p = p * s - 5.395310000e-02f;
  p = p * s + 1.333319992e-01f;
  p = p * s - 3.333332837e-01f;
  return absolute(x) < 1.0f ? x + x * (s * p) : copy_sign(far, x);
}

// Phi(x), the normal distribution, from exp(-x^2 / 2): Phi(-|x|) = exp(-x^2 / 2) * Q(u) * u / 2
// with u = 1 / (1 + 0.4 |x| / sqrt(2)), which keeps its relative precision in the tail.
inline Vector<float> normal_distribution(Vector<float> x, Vector<float> exp_half_square) {
  const Vector<float> u = 1.0f / (1.0f + 0.282842712f * absolute(x));
  Vector<float> q = -3.613664210e-02f * u + 2.344297767e-01f;
  q = q * u - 5.868709683e-01f;
  q = q * u + 6.686651111e-01f;
  q = q * u - 3.889216483e-01f;
  q = q * u + 3.305660188e-01f;
  q = q * u + 1.084729806e-01f;
  q = q * u + 2.197167873e-01f;
  q = q * u + 2.243378311e-01f;
  q = q * u + 2.257407904e-01f;
  const Vector<float> tail = 0.5f * (q * u) * exp_half_square;
  return x < 0.0f ? tail : 1.0f - tail;
}
inline Vector<float> normal_distribution(Vector<float> x) {
  return normal_distribution(x, exp(-0.5f * (x * x)));
}

template <class Function>
inline Vector<double> each_lane(Vector<double> x, Function function) {
  for (int lane = 0; lane < lanes<double>; ++lane) x[lane] = function(x[lane]);
  return x;
}
inline Vector<double> exp(Vector<double> x) {
  return each_lane(x, [](double lane) { return __builtin_exp(lane); });
}
inline Vector<double> tanh(Vector<double> x) {
  return each_lane(x, [](double lane) { return __builtin_tanh(lane); });
}
inline Vector<double> normal_distribution(Vector<double> x) {
  return each_lane(
      x, [](double lane) { return 0.5 * __builtin_erfc(-0.70710678118654752440 * lane); });
}
inline Vector<double> normal_distribution(Vector<double> x, Vector<double>) {
  return normal_distribution(x);
}

// The argument of gelu_tanh's tanh, times 2: gelu_tanh(z) = z * sigmoid(2 sqrt(2/pi) (z + 0.044715
// z^3)).
template <class V, class T>
inline V gelu_tanh_argument(V z, T) {
  return static_cast<T>(1.59576912160573071176) * (z + static_cast<T>(0.044715) * (z * z * z));
}

template <class V>
inline V sigmoid(V z) {
  return 1 / (1 + exp(-z));
}

template <Activation F, class T>
inline Vector<T> activate(Vector<T> z, T parameter) {
  switch (F) {
    case Activation::none:
      return z;
    case Activation::relu:
      return z <= 0 ? Vector<T>{} : z;
    case Activation::threshold:
      return z <= parameter ? Vector<T>{} : z;
    case Activation::leaky_relu:
      return z <= 0 ? z * parameter : z;
    case Activation::gelu:
      return z * normal_distribution(z);
    case Activation::gelu_tanh:
      return z / (1 + exp(-gelu_tanh_argument(z, T{})));
    case Activation::silu:
      return z / (1 + exp(-z));
    case Activation::tanh:
      return tanh(z);
    case Activation::sigmoid:
      return sigmoid(z);
  }
}

// saved: z, for tanh and sigmoid the output.
template <Activation F, class T>
inline Vector<T> derivative(Vector<T> saved) {
  switch (F) {
    case Activation::gelu: {
      const Vector<T> e = exp(saved * saved * static_cast<T>(-0.5));
      return normal_distribution(saved, e) + saved * (static_cast<T>(0.39894228040143267794) * e);
    }
    case Activation::gelu_tanh: {
      // s (1 - s) from exp(-|x|): 1 - s itself has no precision left where s is near 1.
      const Vector<T> x = gelu_tanh_argument(saved, T{});
      const Vector<T> e = exp(x < 0 ? x : -x), r = 1 / (1 + e);
      const Vector<T> s = x < 0 ? e * r : r;
      const Vector<T> slope = static_cast<T>(1.59576912160573071176) *
                              (1 + static_cast<T>(3 * 0.044715) * (saved * saved));
      return s + saved * (e * r * r) * slope;
    }
    case Activation::silu: {
      const Vector<T> s = sigmoid(saved);
      return s * (1 + saved * (1 - s));
    }
    case Activation::tanh:
      return 1 - saved * saved;
    case Activation::sigmoid:
      return saved * (1 - saved);
    default:
      return Vector<T>{} + 1;
  }
}

template <Activation F>
struct ActivationTag {
  static constexpr Activation value = F;
};

// Calls body(ActivationTag<activation>{}).
template <class Body>
inline void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none:
      return body(ActivationTag<Activation::none>{});
    case Activation::relu:
      return body(ActivationTag<Activation::relu>{});
    case Activation::threshold:
      return body(ActivationTag<Activation::threshold>{});
    case Activation::leaky_relu:
      return body(ActivationTag<Activation::leaky_relu>{});
    case Activation::gelu:
      return body(ActivationTag<Activation::gelu>{});
    case Activation::gelu_tanh:
      return body(ActivationTag<Activation::gelu_tanh>{});
    case Activation::silu:
      return body(ActivationTag<Activation::silu>{});
    case Activation::tanh:
      return body(ActivationTag<Activation::tanh>{});
    case Activation::sigmoid:
      return body(ActivationTag<Activation::sigmoid>{});
  }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "common/vec_activation.h"

// What packs and what finishes vectors is compiled for three kinds of activations and not for nine.
// Those of one kind differ in numbers, or in a function that is called once a vector: beside the
// exponentials in it, the call costs little.

namespace lamina {
namespace LAMINA_ISA {
namespace {

enum class Kind {
  none,
  piecewise,  // relu, threshold, leaky_relu: linear on either side of a threshold
  smooth,     // the others
};

template <Kind K>
struct KindTag {
  static constexpr Kind value = K;
};

// Calls body(KindTag<kind of the activation>{}).
template <class Body>
inline void with_kind(Activation activation, const Body& body) {
  if (activation == Activation::none)
    body(KindTag<Kind::none>{});
  else if (saves_mask(activation))
    body(KindTag<Kind::piecewise>{});
  else
    body(KindTag<Kind::smooth>{});
}

template <class T>
struct Piecewise {
  T threshold, slope;
  bool leaky;

  Piecewise(Activation activation, T parameter)
      : threshold(activation == Activation::threshold ? parameter : 0),
        slope(activation == Activation::leaky_relu ? parameter : 0),
        leaky(activation == Activation::leaky_relu) {}

  // Times 1 where kept and the slope elsewhere; without a slope also infinity becomes 0 there.
  Vector<T> scale(Vector<T> value, Mask<T> kept) const {
    if (leaky) return kept ? value : value * slope;
    return (Vector<T>)((Mask<T>)value & kept);
  }
  Vector<T> activate(Vector<T> z) const { return scale(z, ~(Mask<T>)(z <= threshold)); }
  // A bit for each lane whose derivative is 1. Torch passes gradients on where relu and threshold
  // saw NaN, but not where leaky_relu did.
  uint32_t kept(Vector<T> z) const {
    return leaky ? mask_bits((Mask<T>)(z > threshold)) : ~mask_bits((Mask<T>)(z <= threshold));
  }
};

template <class T>
__attribute__((noinline)) Vector<T> activate_smooth(Activation activation, Vector<T> z) {
  Vector<T> result = z;
  with_activation(activation, [&](auto f) { result = activate<decltype(f)::value>(z, T{}); });
  return result;
}

template <class T>
__attribute__((noinline)) Vector<T> smooth_derivative(Activation activation, Vector<T> saved) {
  Vector<T> result = saved;
  with_activation(activation, [&](auto f) { result = derivative<decltype(f)::value, T>(saved); });
  return result;
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

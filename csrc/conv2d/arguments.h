#pragma once

#include "conv2d/conv2d_kernels.h"
#include "conv2d/finish.h"

// What the kernels are given, in the types they work with.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Calls body with a value of the type.
template <class Body>
void with_type(FloatType type, const Body& body) {
  switch (type) {
    case FloatType::f32:
      return body(float{});
    case FloatType::f64:
      return body(double{});
    case FloatType::bf16:
      return body(bfloat16{});
    case FloatType::f16:
      return body(float16{});
  }
}

inline Layout input_layout(const Conv2dShape& shape) {
  return {shape.channels, shape.height * shape.width, shape.channels_last};
}
inline Layout output_layout(const Conv2dShape& shape) {
  return {shape.outs, shape.out_height * shape.out_width, shape.channels_last};
}

// The input of either pass, as it is.
template <class S, class Arguments>
Source<S> plain_input(const Arguments& args) {
  return {
      static_cast<const S*>(args.input), input_layout(args.shape), Activation::none, 0, nullptr, 0};
}

template <class S>
Source<S> derived_gradient(const Conv2dBackward& args) {
  const Layout layout = output_layout(args.shape);
  return {static_cast<const S*>(args.gradient),
          layout,
          args.activation,
          static_cast<Accumulator<S>>(args.parameter),
          args.saved,
          layout.mask_stride(args.shape.images)};
}

template <class S>
Finish<S> finished_output(const Conv2dForward& args) {
  const Layout layout = output_layout(args.shape);
  return {static_cast<S*>(args.output),
          layout,
          static_cast<const S*>(args.bias),
          static_cast<const S*>(args.residual),
          args.activation,
          static_cast<Accumulator<S>>(args.parameter),
          args.mask,
          layout.mask_stride(args.shape.images),
          static_cast<S*>(args.preactivation)};
}

template <class S>
Finish<S> plain_grad_input(const Conv2dBackward& args) {
  return {static_cast<S*>(args.grad_input),
          input_layout(args.shape),
          nullptr,
          nullptr,
          Activation::none,
          0,
          nullptr,
          0,
          nullptr};
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#include "conv2d/arguments.h"
#include "conv2d/pointwise.h"

namespace lamina {
namespace LAMINA_ISA {

void product_forward(const Conv2dForward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    pointwise_forward(args.shape, plain_input<S>(args), static_cast<const S*>(args.weight),
                      finished_output<S>(args), parallel);
  });
}

void product_grad_input(const Conv2dBackward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    pointwise_grad_input(args.shape, derived_gradient<S>(args), static_cast<const S*>(args.weight),
                         plain_grad_input<S>(args), parallel);
  });
}

void product_grad_weight(const Conv2dBackward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    pointwise_grad_weight(args.shape, derived_gradient<S>(args), plain_input<S>(args),
                          static_cast<Accumulator<S>*>(args.grad_weight),
                          static_cast<S*>(args.grad_bias), parallel);
  });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

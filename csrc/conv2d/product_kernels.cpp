#include "conv2d/arguments.h"
#include "conv2d/columns.h"

namespace lamina {
namespace LAMINA_ISA {

void product_forward(const Conv2dForward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    const Source<S> input = plain_input<S>(args);
    const S* const weight = static_cast<const S*>(args.weight);
    const Finish<S> to = finished_output<S>(args);
    if (is_pointwise(args.shape))
      pointwise_forward(args.shape, input, weight, to, parallel);
    else
      columns_forward(args.shape, input.data, weight, to, parallel);
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
    const Source<S> gradient = derived_gradient<S>(args), input = plain_input<S>(args);
    auto* const grad_weight = static_cast<Accumulator<S>*>(args.grad_weight);
    S* const grad_bias = static_cast<S*>(args.grad_bias);
    if (is_pointwise(args.shape))
      pointwise_grad_weight(args.shape, gradient, input, grad_weight, grad_bias, parallel);
    else
      columns_grad_weight(args.shape, gradient, input.data, grad_weight, grad_bias, parallel);
  });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

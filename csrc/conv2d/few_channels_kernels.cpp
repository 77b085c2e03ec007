#include "conv2d/arguments.h"
#include "conv2d/few_channels.h"
#include "conv2d/few_channels_gradient.h"

namespace lamina {
namespace LAMINA_ISA {

void few_channels_forward(const Conv2dForward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    few_channels_forward(args.shape, static_cast<const S*>(args.input),
                         static_cast<const S*>(args.weight), finished_output<S>(args), parallel);
  });
}

void few_channels_grad_weight(const Conv2dBackward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    const Source<S> gradient = derived_gradient<S>(args);
    few_channels_grad_weight(args.shape, gradient, static_cast<const S*>(args.input),
                             static_cast<Accumulator<S>*>(args.grad_weight),
                             static_cast<S*>(args.grad_bias), parallel);
  });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

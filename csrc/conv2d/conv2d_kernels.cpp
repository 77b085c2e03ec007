#include "conv2d/conv2d_kernels.h"

namespace lamina {
namespace LAMINA_ISA {

void conv2d_forward(const Conv2dForward& args, const Parallel& parallel) {
  if (is_pointwise(args.shape) || has_few_channels(args.shape))
    product_forward(args, parallel);
  else
    staged_forward(args, parallel);
}

void conv2d_backward(const Conv2dBackward& args, const Parallel& parallel) {
  const Conv2dShape& shape = args.shape;
  if (args.grad_input != nullptr) {
    if (is_pointwise(shape))
      product_grad_input(args, parallel);
    else
      staged_grad_input(args, parallel);
  }
  // The product's packing would sum the bias gradient, but without weights there is none.
  const bool product = args.grad_weight != nullptr && shape.channels > 0;
  if (product && (is_pointwise(shape) || has_few_channels(shape)))
    product_grad_weight(args, parallel);
  else if (args.grad_weight != nullptr || args.grad_bias != nullptr)
    staged_grad_weight(args, parallel);
  if (args.grad_residual != nullptr) store_grad_residual(args, parallel);
}

}  // namespace LAMINA_ISA
}  // namespace lamina

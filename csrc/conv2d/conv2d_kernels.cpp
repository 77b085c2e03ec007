#include "conv2d/conv2d_kernels.h"

namespace lamina {
namespace LAMINA_ISA {

void conv2d_forward(const Conv2dForward& args, const Parallel& parallel) {
  if (is_pointwise(args.shape))
    product_forward(args, parallel);
  else if (has_few_channels(args.shape) && !args.shape.channels_last)
    few_channels_forward(args, parallel);
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
  // The first two sum the bias gradient beside that of the weights, but without these not at all.
  const bool weights = args.grad_weight != nullptr && shape.channels > 0;
  if (weights && is_pointwise(shape))
    product_grad_weight(args, parallel);
  else if (weights && has_few_channels(shape))
    few_channels_grad_weight(args, parallel);
  else if (args.grad_weight != nullptr || args.grad_bias != nullptr)
    staged_grad_weight(args, parallel);
  if (args.grad_residual != nullptr) store_grad_residual(args, parallel);
}

}  // namespace LAMINA_ISA
}  // namespace lamina

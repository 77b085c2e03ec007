#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "common/parallel_torch.h"
#include "conv2d/conv2d_checks.h"
#include "conv2d/conv2d_kernels.h"

namespace lamina {
namespace {

using Ints = std::vector<int64_t>;

// Winograd's transforms pay where the products over channels are long.
constexpr int64_t winograd_channels = 16;

// The kernels read images as they lie.
void check_layout(const char* name, const Tensor& images, bool channels_last) {
  const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  bool fits = true;
  int64_t expected = 1;
  for (int d : order[channels_last]) {
    fits = fits && (images.size(d) == 1 || images.stride(d) == expected);
    expected *= images.size(d);
  }
  STD_TORCH_CHECK(fits || expected == 0, name, " must be dense and ",
                  channels_last ? "channels_last" : "contiguous");
}

std::vector<int64_t> output_sizes(const Conv2dShape& shape) {
  return {shape.images, shape.outs, shape.out_height, shape.out_width};
}

Conv2dShape shape_of(const Tensor& input, const Tensor& weight, const Ints& stride,
                     const Ints& padding, const Ints& dilation, int64_t groups,
                     const std::string& algorithm, bool channels_last) {
  check_conv2d(input, weight, stride, padding, dilation, groups);
  check_layout("conv2d: input", input, channels_last);
  Conv2dShape shape;
  shape.type = float_type(input);
  shape.channels_last = channels_last;
  shape.images = input.size(0);
  shape.channels = input.size(1);
  shape.height = input.size(2);
  shape.width = input.size(3);
  shape.outs = weight.size(0);
  shape.groups = groups;
  for (int d : {0, 1}) {
    shape.kernel[d] = weight.size(2 + d);
    shape.stride[d] = stride[d];
    shape.padding[d] = padding[d];
    shape.dilation[d] = dilation[d];
  }
  shape.out_height =
      conv_output_size(shape.height, shape.kernel[0], stride[0], padding[0], dilation[0]);
  shape.out_width =
      conv_output_size(shape.width, shape.kernel[1], stride[1], padding[1], dilation[1]);
  const bool fits = shape.kernel[0] == 3 && shape.kernel[1] == 3 && stride[0] == 1 &&
                    stride[1] == 1 && dilation[0] == 1 && dilation[1] == 1;
  const bool pays = weight.size(1) >= winograd_channels && shape.outs / groups >= winograd_channels;
  const bool depthwise = groups > 1 && weight.size(1) == 1 && shape.outs == groups;
  const bool small_tiles = algorithm == "winograd" || (algorithm == "auto" && pays);
  shape.winograd = !fits || depthwise ? 0 : algorithm == "winograd4" ? 4 : small_tiles ? 2 : 0;
  return shape;
}

// A new tensor [N, C, H, W] in one of the two layouts.
Tensor empty_images(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w,
                    bool channels_last) {
  Tensor made = channels_last ? torch::stable::new_empty(like, {n, h, w, c})
                              : torch::stable::new_empty(like, {n, c, h, w});
  prefer_huge_pages(made);
  if (!channels_last) return made;
  return torch::stable::transpose(torch::stable::transpose(made, 2, 3), 1, 2);
}

const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->data_ptr() : nullptr;
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& given_weight,
                                   const std::optional<Tensor>& given_bias,
                                   const std::optional<Tensor>& residual, Ints stride, Ints padding,
                                   Ints dilation, int64_t groups, std::string activation,
                                   double parameter, std::string algorithm, bool channels_last,
                                   bool save) {
  Conv2dForward args;
  args.shape =
      shape_of(input, given_weight, stride, padding, dilation, groups, algorithm, channels_last);
  const Conv2dShape& shape = args.shape;
  args.activation = activation_named("conv2d", activation);
  args.parameter = parameter;
  const Tensor weight = as_contiguous(given_weight);
  std::optional<Tensor> bias;
  if (given_bias.has_value()) {
    check_alike("conv2d: bias", *given_bias, input, {shape.outs});
    bias = as_contiguous(*given_bias);
  }
  if (residual.has_value()) {
    check_alike("conv2d: residual", *residual, input, output_sizes(shape));
    check_layout("conv2d: residual", *residual, channels_last);
  }

  Tensor output = empty_images(input, shape.images, shape.outs, shape.out_height, shape.out_width,
                               channels_last);
  const bool mask = save && saves_mask(args.activation);
  const bool preactivation = save && saves_preactivation(args.activation);
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  Tensor saved = preactivation   ? empty_images(input, shape.images, shape.outs, shape.out_height,
                                                shape.out_width, channels_last)
                 : !mask         ? empty_bytes(input, {0})
                 : channels_last ? empty_bytes(input, {pixels, (shape.outs + 7) / 8})
                                 : empty_bytes(input, {shape.outs, (pixels + 7) / 8});
  if (mask && saved.numel() > 0) std::memset(saved.data_ptr(), 0, saved.numel());

  args.input = input.data_ptr();
  args.weight = weight.data_ptr();
  args.bias = data_or_null(bias);
  args.residual = data_or_null(residual);
  args.output = output.data_ptr();
  args.mask = mask ? static_cast<uint8_t*>(saved.data_ptr()) : nullptr;
  args.preactivation = preactivation ? saved.data_ptr() : nullptr;
  LAMINA_DISPATCH(conv2d_forward)(args, torch_threads());
  return {output, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gradient, const Tensor& input,
                                                    const Tensor& given_weight, const Tensor& saved,
                                                    Ints stride, Ints padding, Ints dilation,
                                                    int64_t groups, std::string activation,
                                                    double parameter, std::string algorithm,
                                                    bool channels_last, std::vector<bool> needs) {
  Conv2dBackward args;
  args.shape =
      shape_of(input, given_weight, stride, padding, dilation, groups, algorithm, channels_last);
  const Conv2dShape& shape = args.shape;
  args.activation = activation_named("conv2d", activation);
  args.parameter = parameter;
  check_needs("conv2d_backward", needs, 4);
  check_alike("conv2d_backward: grad", gradient, input, output_sizes(shape));
  check_layout("conv2d_backward: grad", gradient, channels_last);
  check_saved(saved, input, args.activation, output_sizes(shape), channels_last);
  if (saves_preactivation(args.activation) || saves_output(args.activation))
    check_layout("conv2d_backward: saved", saved, channels_last);
  const Tensor weight = as_contiguous(given_weight);

  Tensor grad_input, grad_weight, grad_bias, grad_residual, sums;
  if (needs[0])
    grad_input =
        empty_images(input, shape.images, shape.channels, shape.height, shape.width, channels_last);
  if (needs[1]) {
    // Sums are kept in accumulators and in the kernels' order; the gradient has the weight's own.
    const ScalarType type =
        weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    grad_weight = torch::stable::empty_like(given_weight);
    const bool same = weight.scalar_type() == type && given_weight.is_contiguous();
    sums = same ? grad_weight : torch::stable::new_empty(weight, weight.sizes(), type);
  }
  if (needs[2]) grad_bias = torch::stable::new_empty(weight, {shape.outs});
  if (needs[3])
    grad_residual = empty_images(input, shape.images, shape.outs, shape.out_height, shape.out_width,
                                 channels_last);

  args.gradient = gradient.data_ptr();
  args.input = input.data_ptr();
  args.weight = weight.data_ptr();
  args.saved = saved.data_ptr();
  args.grad_input = needs[0] ? grad_input.data_ptr() : nullptr;
  args.grad_weight = needs[1] ? sums.data_ptr() : nullptr;
  args.grad_bias = needs[2] ? grad_bias.data_ptr() : nullptr;
  args.grad_residual = needs[3] ? grad_residual.data_ptr() : nullptr;
  LAMINA_DISPATCH(conv2d_backward)(args, torch_threads());
  if (needs[1] && sums.data_ptr() != grad_weight.data_ptr())
    torch::stable::copy_(grad_weight, sums);
  return {grad_input, grad_weight, grad_bias, grad_residual};
}

}  // namespace
}  // namespace lamina

STABLE_TORCH_LIBRARY_FRAGMENT(lamina, m) {
  m.def(lamina::conv2d_forward_schema);
  m.def(lamina::conv2d_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(lamina, CPU, m) {
  m.impl("conv2d_forward", TORCH_BOX(&lamina::forward));
  m.impl("conv2d_backward", TORCH_BOX(&lamina::backward));
}

#include "conv2d/conv2d_cuda.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/cuda_glue.h"
#include "conv2d/conv2d_checks.h"
#include "conv2d/library_convolution.h"
#include "linear/linear_cuda.h"

namespace lamina {
namespace {

using torch::headeronly::MemoryFormat;
using MaybeTensor = std::optional<Tensor>;

MemoryFormat format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

Tensor new_images(const Tensor& like, std::vector<int64_t> sizes, bool channels_last) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              format(channels_last));
}

// The kernels read images channels last, whatever the layout of the op's arguments.
ConvImages images_of(const CudaCall& call, const Tensor& channels_last) {
  return {call.pointer(channels_last), channels_last.size(0), channels_last.size(2),
          channels_last.size(3), channels_last.size(1)};
}

// How the rows (or columns) y of the gradient of the input that leave the remainder `phase` read
// dZ.
ConvAxis backward_axis(int64_t taps, int64_t stride, int64_t padding, int64_t dilation,
                       int64_t size, int64_t phase) {
  // Row (phase + padding - r dilation) / stride of dZ has to be whole.
  int64_t first_tap = 0;
  while (first_tap < taps && (phase + padding - first_tap * dilation) % stride != 0) ++first_tap;
  const int64_t tap_stride = stride / std::gcd(stride, dilation);
  return {static_cast<int>(ceil_div<int64_t>(taps - first_tap, tap_stride)),
          1,
          static_cast<int>((phase + padding - first_tap * dilation) / stride),
          static_cast<int>(-dilation * tap_stride / stride),
          ceil_div<int64_t>(size - phase, stride),
          static_cast<int>(first_tap),
          static_cast<int>(tap_stride),
          phase,
          stride,
          size};
}

// One call's geometry, checked.
struct Convolution {
  const CudaCall& call;
  FloatType type;
  int64_t images, ins, height, width, outs, out_height, out_width;
  int groups;
  ConvTaps forward;
  std::vector<ConvAxis> backward[2];  // the phases in which the gradient of the input reads dZ

  Convolution(const CudaCall& call, const Tensor& input, const Tensor& weight,
              const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
              const std::vector<int64_t>& dilation, int64_t group_count)
      : call(call), type(float_type(input)), groups(static_cast<int>(group_count)) {
    check_conv2d(input, weight, stride, padding, dilation, group_count);
    images = input.size(0), ins = input.size(1), height = input.size(2), width = input.size(3);
    outs = weight.size(0);
    const auto axis = [&](int d) {
      const int64_t size = conv_output_size(input.size(d + 2), weight.size(d + 2), stride[d],
                                            padding[d], dilation[d]);
      for (int64_t phase = 0; phase < std::min(stride[d], input.size(d + 2)); ++phase)
        backward[d].push_back(backward_axis(weight.size(d + 2), stride[d], padding[d], dilation[d],
                                            input.size(d + 2), phase));
      return ConvAxis{static_cast<int>(weight.size(d + 2)),
                      static_cast<int>(stride[d]),
                      static_cast<int>(-padding[d]),
                      static_cast<int>(dilation[d]),
                      size,
                      0,
                      1,
                      0,
                      1,
                      size};
    };
    forward = {axis(0), axis(1)};
    out_height = forward.vertical.grid, out_width = forward.horizontal.grid;
    constexpr int64_t limit = int64_t{1} << 31;
    STD_TORCH_CHECK(images * out_height * out_width < limit && images * height * width < limit,
                    "conv2d: fewer than 2^31 pixels expected");
  }

  std::vector<int64_t> output_sizes() const { return {images, outs, out_height, out_width}; }
  int64_t out_pixels() const { return out_height * out_width; }

  Tensor sums(const Tensor& like, int64_t count) const {
    return torch::stable::new_empty(
        like, {count}, type == FloatType::f64 ? ScalarType::Double : ScalarType::Float);
  }

  // Filters of the taps, with room in `holder`.
  ConvFilters filters(const ConvTaps& taps, const Tensor& weight, bool transposed,
                      Tensor& holder) const {
    ConvFilters made{nullptr, transposed ? ins : outs, transposed ? outs / groups : ins / groups,
                     0};
    made.stride = ceil_div<int64_t>(taps.count() * made.ins, 8) * 8;
    holder = torch::stable::new_empty(weight, {made.outs * made.stride});
    made.data = call.pointer(holder);
    return made;
  }

  void run(const Tensor& images, const ConvTaps& taps, const Tensor& weight, bool transposed,
           const ConvOutputs& outputs) const {
    Tensor holder;
    const ConvFilters packed = filters(taps, weight, transposed, holder);
    const int64_t strides[4] = {weight.stride(0), weight.stride(1), weight.stride(2),
                                weight.stride(3)};
    launch_conv_filters(type, call.pointer(weight), strides, taps, groups, transposed, packed,
                        call.stream());
    const ConvImages view = images_of(call, images);
    const Tensor partial =
        sums(weight, conv_partial_sums(view, taps, packed, groups, outputs.channels_last));
    launch_conv(type, view, taps, packed, groups, outputs, call.pointer(partial), call.stream());
  }
};

Tensor channels_last_of(const Tensor& images) {
  return torch::stable::contiguous(images, MemoryFormat::ChannelsLast);
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight,
                                   const MaybeTensor& bias, const MaybeTensor& residual,
                                   const std::vector<int64_t>& stride,
                                   const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation, int64_t groups,
                                   const std::string& name, double parameter,
                                   const std::string& algorithm, bool channels_last, bool save) {
  const Activation activation = activation_named("conv2d", name);
  const CudaCall call(input);
  const Convolution conv(call, input, weight, stride, padding, dilation, groups);
  if (bias) check_alike("conv2d: bias", *bias, input, {conv.outs});
  if (residual) check_alike("conv2d: residual", *residual, input, conv.output_sizes());
  const bool library = algorithm == "library";
  const Tensor output =
      library ? torch::stable::contiguous(
                    LibraryConvolution{input, weight, stride, padding, dilation, groups}.forward(),
                    format(channels_last))
              : new_images(input, conv.output_sizes(), channels_last);
  const int64_t pixels = conv.images * conv.out_pixels();
  const bool save_mask = save && saves_mask(activation);
  const bool save_z = save && saves_preactivation(activation);
  const int64_t rows = channels_last ? pixels : conv.outs;
  const int64_t bits = channels_last ? conv.outs : pixels;
  const Tensor saved = save_z      ? torch::stable::empty_like(output)
                       : save_mask ? empty_bytes(input, {rows, ceil_div<int64_t>(bits, 8)})
                                   : empty_bytes(input, {0});
  Tensor b, added;
  if (bias) b = torch::stable::contiguous(*bias);
  if (residual) added = torch::stable::contiguous(*residual, format(channels_last));
  const ConvOutputs outputs{call.pointer(output),
                            bias ? call.pointer(b) : nullptr,
                            residual ? call.pointer(added) : nullptr,
                            activation,
                            parameter,
                            save_mask ? call.pointer<uint8_t>(saved) : nullptr,
                            save_z ? call.pointer(saved) : nullptr,
                            channels_last};
  if (library)
    launch_conv_finish(conv.type, conv.images, conv.outs, conv.forward, outputs, call.stream());
  else
    conv.run(channels_last_of(input), conv.forward, weight, false, outputs);
  call.check();
  return {output, saved};
}

// dZ = dY act'(saved), unless `wanted` is false, and the gradient of the bias if `grad_bias` is
// there.
Tensor activation_gradient(const Convolution& conv, const Tensor& grad, const Tensor& saved,
                           Activation activation, double parameter, bool channels_last, bool wanted,
                           const MaybeTensor& grad_bias) {
  const CudaCall& call = conv.call;
  const Tensor grad_z = wanted ? torch::stable::empty_like(grad) : grad;
  void* to = wanted ? call.pointer(grad_z) : nullptr;
  void* bias = grad_bias ? call.pointer(*grad_bias) : nullptr;
  const int64_t pixels = conv.images * conv.out_pixels();
  if (channels_last) {
    const Tensor partial = conv.sums(grad, grad_bias ? grad_z_partial_sums(pixels, conv.outs) : 0);
    launch_linear_grad_z(conv.type,
                         {pixels, conv.outs, call.pointer(grad), conv.outs, 1, call.pointer(saved),
                          activation, parameter, to, bias, call.pointer(partial)},
                         call.stream());
    return grad_z;
  }
  ConvGradZ args{conv.images,
                 conv.outs,
                 conv.out_pixels(),
                 call.pointer(grad),
                 call.pointer(saved),
                 activation,
                 parameter,
                 to,
                 bias,
                 nullptr};
  const Tensor partial = conv.sums(grad, grad_bias ? conv_grad_z_partial_sums(args) : 0);
  args.partial = call.pointer(partial);
  launch_conv_grad_z(conv.type, args, call.stream());
  return grad_z;
}

Tensor input_gradient(const Convolution& conv, const Tensor& grad_z, const Tensor& input,
                      const Tensor& weight, bool channels_last) {
  const Tensor grad_input =
      new_images(input, {conv.images, conv.ins, conv.height, conv.width}, channels_last);
  const ConvOutputs outputs{conv.call.pointer(grad_input),
                            nullptr,
                            nullptr,
                            Activation::none,
                            0,
                            nullptr,
                            nullptr,
                            channels_last};
  for (const ConvAxis& vertical : conv.backward[0])
    for (const ConvAxis& horizontal : conv.backward[1])
      conv.run(grad_z, {vertical, horizontal}, weight, true, outputs);
  return grad_input;
}

Tensor weight_gradient(const Convolution& conv, const Tensor& grad_z, const Tensor& input,
                       const Tensor& weight) {
  const CudaCall& call = conv.call;
  const Tensor images = channels_last_of(input);
  Tensor holder;
  ConvFilters filters = conv.filters(conv.forward, weight, false, holder);
  // The GEMM's rows are not padded.
  filters.stride = conv.forward.count() * filters.ins;
  const ConvImages view = images_of(call, images);
  const Tensor partial =
      conv.sums(weight, conv_grad_filters_partial_sums(view, conv.forward, filters, conv.groups));
  launch_conv_grad_filters(conv.type, view, images_of(call, grad_z), conv.forward, filters,
                           conv.groups, call.pointer(partial), call.stream());
  const Tensor grad_weight = torch::stable::empty_like(weight);
  const int64_t strides[4] = {grad_weight.stride(0), grad_weight.stride(1), grad_weight.stride(2),
                              grad_weight.stride(3)};
  launch_conv_filters_back(conv.type, filters, conv.forward, call.pointer(grad_weight), strides,
                           call.stream());
  return grad_weight;
}

// The numbers of `tensor` in the strides of `like`.
Tensor ordered_as(const Tensor& tensor, const Tensor& like) {
  Tensor ordered = torch::stable::empty_like(like);
  bool same = true;
  for (int64_t d = 0; d < like.dim(); ++d) same = same && tensor.stride(d) == ordered.stride(d);
  return same ? tensor : torch::stable::copy_(ordered, tensor);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& given, const Tensor& input, const Tensor& weight, const Tensor& saved,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
    const std::vector<int64_t>& dilation, int64_t groups, const std::string& name, double parameter,
    const std::string& algorithm, bool channels_last, const std::vector<bool>& needs) {
  const Activation activation = activation_named("conv2d", name);
  const CudaCall call(given);
  const Convolution conv(call, input, weight, stride, padding, dilation, groups);
  check_needs("conv2d_backward", needs, 4);
  check_alike("conv2d_backward: grad", given, input, conv.output_sizes());
  check_saved(saved, input, activation, conv.output_sizes(), channels_last);
  const Tensor grad = torch::stable::contiguous(given, format(channels_last));
  const Tensor kept =
      saves_mask(activation)
          ? torch::stable::contiguous(saved)
          : (saved.dim() == 4 ? torch::stable::contiguous(saved, format(channels_last)) : saved);
  Tensor grad_input, grad_weight, grad_bias, grad_residual;
  const bool through = (needs[0] || needs[1]) && activation != Activation::none;
  Tensor grad_z = grad;
  if (needs[2]) grad_bias = torch::stable::new_empty(weight, {conv.outs});
  if (through || needs[2] || needs[3])
    grad_z =
        activation_gradient(conv, grad, kept, activation, parameter, channels_last,
                            through || needs[3], needs[2] ? MaybeTensor(grad_bias) : std::nullopt);
  if (needs[3]) grad_residual = grad_z;
  if (algorithm == "library" && (needs[0] || needs[1])) {
    const auto [of_input, of_weight, of_bias] =
        LibraryConvolution{input, weight, stride, padding, dilation, groups}.backward(
            grad_z, needs[0], needs[1]);
    if (needs[0]) grad_input = torch::stable::contiguous(of_input, format(channels_last));
    if (needs[1]) grad_weight = ordered_as(of_weight, weight);
  } else if (needs[0] || needs[1]) {
    grad_z = channels_last_of(grad_z);
    if (needs[0]) grad_input = input_gradient(conv, grad_z, input, weight, channels_last);
    if (needs[1]) grad_weight = weight_gradient(conv, grad_z, input, weight);
  }
  call.check();
  return {grad_input, grad_weight, grad_bias, grad_residual};
}

}  // namespace
}  // namespace lamina

#ifdef LAMINA_HOST_SHIM
STABLE_TORCH_LIBRARY_FRAGMENT(lamina_host, m) {
  m.def(lamina::conv2d_forward_schema);
  m.def(lamina::conv2d_backward_schema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(LAMINA_CUDA_NAMESPACE, LAMINA_CUDA_KEY, m) {
  m.impl("conv2d_forward", TORCH_BOX(&lamina::forward));
  m.impl("conv2d_backward", TORCH_BOX(&lamina::backward));
}

#include "conv2d/conv2d_kernels.h"

#include "conv2d/columns.h"
#include "conv2d/weight_gradient.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

constexpr int64_t most_axis_memory = 4096;

// The axes of a convolution or its transpose. Kernels and strides are small numbers, yet nothing
// bounds them: long lists get memory of their own.
struct Axes {
  int64_t small[most_axis_memory];
  int64_t* memory;
  Axis vertical, horizontal;

  Axes(const Conv2dShape& shape, bool transposed) {
    const int64_t down = axis_memory(shape.kernel[0], shape.stride[0]);
    const int64_t across = axis_memory(shape.kernel[1], shape.stride[1]);
    memory = down + across <= most_axis_memory ? small : new int64_t[down + across];
    vertical = make_axis(shape.kernel[0], shape.stride[0], shape.padding[0], shape.dilation[0],
                         transposed, memory);
    horizontal = make_axis(shape.kernel[1], shape.stride[1], shape.padding[1], shape.dilation[1],
                           transposed, memory + down);
  }
  Axes(const Axes&) = delete;
  ~Axes() {
    if (memory != small) delete[] memory;
  }
};

template <class S>
void forward(const Conv2dForward& args, const Parallel& parallel) {
  using T = Accumulator<S>;
  const Conv2dShape& shape = args.shape;
  const Layout input{shape.channels, shape.height * shape.width, shape.channels_last};
  const Layout output{shape.outs, shape.out_height * shape.out_width, shape.channels_last};
  const Source<S> source{static_cast<const S*>(args.input), input, Activation::none, 0, nullptr, 0};
  const S* const weight = static_cast<const S*>(args.weight);
  const Finish<S> to{static_cast<S*>(args.output),
                     output,
                     static_cast<const S*>(args.bias),
                     static_cast<const S*>(args.residual),
                     args.activation,
                     static_cast<T>(args.parameter),
                     args.mask,
                     output.mask_stride(shape.images),
                     static_cast<S*>(args.preactivation)};
  if (is_pointwise(shape)) return pointwise_forward(shape, source, weight, to, parallel);
  if (has_few_channels(shape)) return columns_forward(shape, source.data, weight, to, parallel);

  const int64_t depth = shape.channels / shape.groups, targets = shape.outs / shape.groups;
  const int64_t taps = shape.kernel[0] * shape.kernel[1];
  const Axes axes(shape, false);
  const Correlation<S> problem{source,
                               to,
                               shape.images,
                               shape.groups,
                               depth,
                               targets,
                               shape.height,
                               shape.width,
                               shape.out_height,
                               shape.out_width,
                               axes.vertical,
                               axes.horizontal,
                               {weight, targets, depth, taps, depth * taps, taps},
                               targets * depth * taps,
                               shape.winograd,
                               false};
  Correlator<S>(problem, parallel).run();
}

// The gradient of the input is the transposed convolution of dZ.
template <class S>
void spread_gradient(const Conv2dShape& shape, const Source<S>& gradient, const S* weight,
                     const Finish<S>& to, const Parallel& parallel) {
  const int64_t depth = shape.outs / shape.groups, targets = shape.channels / shape.groups;
  const int64_t taps = shape.kernel[0] * shape.kernel[1];
  const Axes axes(shape, true);
  const Correlation<S> problem{gradient,
                               to,
                               shape.images,
                               shape.groups,
                               depth,
                               targets,
                               shape.out_height,
                               shape.out_width,
                               shape.height,
                               shape.width,
                               axes.vertical,
                               axes.horizontal,
                               {weight, targets, depth, taps, taps, targets * taps},
                               depth * targets * taps,
                               shape.winograd,
                               true};
  Correlator<S>(problem, parallel).run();
}

// grad_residual = dZ.
template <class S, Activation F>
void store_derivative(const Reader<S, F>& gradient, int64_t images, S* target,
                      const Parallel& parallel) {
  using T = Accumulator<S>;
  const Layout& layout = gradient.from.layout;
  const int64_t runs = layout.channels_last ? layout.pixels : layout.channels;
  const int64_t length = layout.channels_last ? layout.channels : layout.pixels;
  each_task(parallel, images * runs, [&](int, int64_t task) {
    for (int64_t i = 0; i < length; i += lanes<T>) {
      const int count = static_cast<int>(min64(lanes<T>, length - i));
      const int64_t channel = layout.channels_last ? i : task % runs;
      const int64_t pixel = layout.channels_last ? task % runs : i;
      store(target + layout.offset(task / runs, channel, pixel),
            gradient(task / runs, channel, pixel, count), count);
    }
  });
}

template <class S>
void backward(const Conv2dBackward& args, const Parallel& parallel) {
  using T = Accumulator<S>;
  const Conv2dShape& shape = args.shape;
  const Layout input{shape.channels, shape.height * shape.width, shape.channels_last};
  const Layout output{shape.outs, shape.out_height * shape.out_width, shape.channels_last};
  const Source<S> gradient{
      static_cast<const S*>(args.gradient), output,     args.activation,
      static_cast<T>(args.parameter),       args.saved, output.mask_stride(shape.images)};
  const Source<S> source{static_cast<const S*>(args.input), input, Activation::none, 0, nullptr, 0};
  const S* const weight = static_cast<const S*>(args.weight);
  if (args.grad_input != nullptr) {
    const Finish<S> to{static_cast<S*>(args.grad_input),
                       input,
                       nullptr,
                       nullptr,
                       Activation::none,
                       0,
                       nullptr,
                       0,
                       nullptr};
    if (is_pointwise(shape))
      pointwise_grad_input(shape, gradient, weight, to, parallel);
    else
      spread_gradient(shape, gradient, weight, to, parallel);
  }
  if (args.grad_weight != nullptr || args.grad_bias != nullptr) {
    if (is_pointwise(shape))
      pointwise_grad_weight(shape, gradient, source, static_cast<T*>(args.grad_weight),
                            static_cast<S*>(args.grad_bias), parallel);
    else if (has_few_channels(shape))
      columns_grad_weight(shape, gradient, source.data, static_cast<T*>(args.grad_weight),
                          static_cast<S*>(args.grad_bias), parallel);
    else
      WeightGradient<S>(args, gradient, parallel).run();
  }
  if (args.grad_residual != nullptr)
    with_activation(args.activation, [&](auto f) {
      const Reader<S, decltype(f)::value> reader{gradient};
      store_derivative(reader, shape.images, static_cast<S*>(args.grad_residual), parallel);
    });
}

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

}  // namespace

void conv2d_forward(const Conv2dForward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) { forward<decltype(type)>(args, parallel); });
}

void conv2d_backward(const Conv2dBackward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) { backward<decltype(type)>(args, parallel); });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

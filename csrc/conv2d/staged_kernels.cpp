#include "conv2d/arguments.h"
#include "conv2d/correlate.h"

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

// The gradient of the input is the transposed convolution of dZ: channels change places.
template <class S>
void correlate(const Conv2dShape& shape, bool transposed, const Source<S>& source, const S* weight,
               const Finish<S>& to, const Parallel& parallel) {
  const int64_t ins = shape.channels / shape.groups, outs = shape.outs / shape.groups;
  const int64_t taps = shape.kernel[0] * shape.kernel[1];
  const Axes axes(shape, transposed);
  Correlation<S> problem{};
  problem.source = source;
  problem.to = to;
  problem.images = shape.images;
  problem.groups = shape.groups;
  problem.depth = transposed ? outs : ins;
  problem.targets = transposed ? ins : outs;
  problem.source_height = transposed ? shape.out_height : shape.height;
  problem.source_width = transposed ? shape.out_width : shape.width;
  problem.height = transposed ? shape.height : shape.out_height;
  problem.width = transposed ? shape.width : shape.out_width;
  problem.vertical = axes.vertical;
  problem.horizontal = axes.horizontal;
  problem.weights = {weight,
                     problem.targets,
                     problem.depth,
                     taps,
                     transposed ? taps : ins * taps,
                     transposed ? ins * taps : taps};
  problem.weights_of_group = ins * outs * taps;
  problem.winograd = shape.winograd;
  problem.transposed = transposed;
  Correlator<S>(problem, parallel).run();
}

}  // namespace

void staged_forward(const Conv2dForward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    correlate(args.shape, false, plain_input<S>(args), static_cast<const S*>(args.weight),
              finished_output<S>(args), parallel);
  });
}

void staged_grad_input(const Conv2dBackward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    correlate(args.shape, true, derived_gradient<S>(args), static_cast<const S*>(args.weight),
              plain_grad_input<S>(args), parallel);
  });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

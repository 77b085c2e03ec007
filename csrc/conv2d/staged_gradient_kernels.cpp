#include "conv2d/arguments.h"
#include "conv2d/weight_gradient.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// grad_residual = dZ.
template <class S, Kind K>
void store_derivative(const Reader<S, K>& gradient, int64_t images, S* target,
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

}  // namespace

void staged_grad_weight(const Conv2dBackward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    const Source<S> gradient = derived_gradient<S>(args), input = plain_input<S>(args);
    WeightGradient<S>(args, gradient, input, parallel).run();
  });
}

void store_grad_residual(const Conv2dBackward& args, const Parallel& parallel) {
  with_type(args.shape.type, [&](auto type) {
    using S = decltype(type);
    with_kind(args.activation, [&](auto kind) {
      const Reader<S, decltype(kind)::value> reader(derived_gradient<S>(args));
      store_derivative(reader, args.shape.images, static_cast<S*>(args.grad_residual), parallel);
    });
  });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

#include "dynamic_routing/dynamic_routing_kernels.h"
#include "dynamic_routing/routing_backward_gradients.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

template <class T, class P>
class Backward : BackwardGradients<T, P> {
  using Gradients = BackwardGradients<T, P>;

 public:
  Backward(const RoutingBackward& args, Arena arena, int threads)
      : Gradients(args, arena, threads) {
    Gradients::memory_.place(arena, Gradients::tasks_);
    used = arena.used;
  }

  void run(const Parallel& parallel) {
    for (int64_t group = 0; group < Gradients::groups_; ++group) {
      Gradients::start_group(group);
      Gradients::add_ = group > 0;
      Gradients::find_couplings(parallel);
      Gradients::find_gradients(parallel);
    }
  }

  size_t used;
};

template <class F>
void with_backward(const RoutingBackward& args, void* scratch, int threads, const F& f) {
  const Arena arena{static_cast<char*>(scratch)};
  const auto of = [&](auto number) {
    using T = decltype(number);
    const bool teams = CapsuleLanes<T>::suit_teams(args.inputs, backward_passes(args));
    with_tile<T>(args.inputs.batch, teams,
                 [&](auto tile) { f(Backward<T, decltype(tile)>(args, arena, threads)); });
  };
  args.inputs.f64 ? of(double()) : of(float());
}

}  // namespace

size_t routing_backward_scratch(const RoutingBackward& args, int threads) {
  size_t bytes = 0;
  with_backward(args, nullptr, threads, [&](const auto& backward) { bytes = backward.used; });
  return bytes;
}

void routing_backward(const RoutingBackward& args, void* scratch, const Parallel& parallel) {
  with_backward(args, scratch, parallel.threads, [&](auto backward) { backward.run(parallel); });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

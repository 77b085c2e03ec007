#pragma once

#include "dynamic_routing/routing_backward_steps.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The backward passes t = iterations - 1 .. stop, each of which needs the R of the one before. They
// keep c and beta of every (sample, in-capsule, out-capsule), so that the last pass, which is that
// of the gradients, gets by without votes: X_ij = sum_t c^t sbar^t_j + beta^t v^t_j (the scale is
// in v).
template <class T, class P>
class BackwardCouplings : protected BackwardSteps<T, P> {
 protected:
  using Step = RoutingStep<T, P>;
  using Steps = BackwardSteps<T, P>;
  using Step::in_, Step::O, Step::S;
  using Steps::at, Steps::own_, Steps::slot, Steps::steps_, Steps::v_, Steps::sbar_;
  using Steps::coupled_, Steps::kept, Steps::kept_in_, Steps::kept_out_;

  using Steps::Steps;

  // All of these passes, for the group that was started.
  void find_couplings(const Parallel& parallel) {
    Steps::list_terms();
    Step::prepare(parallel);
    parallel_for(parallel, int(Step::tiles_), [&](int tile) { Steps::start(tile); });
    for (int t = steps_ - 1; t >= Steps::stop_; --t) {
      if (in_.over_in)
        Step::template find_stats<2>(parallel, v_ + at(t, Step::sums()),
                                     sbar_ + at(t, Step::sums()));
      Step::for_chunks(parallel, [&](int task, int64_t chunk) { attend(task, chunk, t); });
      parallel_for(parallel, int(Step::tiles_), [&](int tile) { Steps::finish(t, tile); });
    }
  }

  void attend(int task, int64_t chunk, int t) {
    Step::clear(Step::partial(chunk, 0), Step::tiles_ * Step::sums());
    if (Step::by_capsule_) return attend_by_capsule(task, chunk, t);
    T* coupled = nullptr;
    if (in_.shared) {
      coupled = coupled_ + chunk * Step::group_tiles_ * Step::sums();
      Step::clear(coupled, Step::tiles_ * Step::sums());
    }
    const T* v = v_ + at(t, Step::sums());
    const T* sbar = sbar_ + at(t, Step::sums());
    Step::sweep(task, chunk, [&](const auto& block) {
      for (int64_t k = 0; k < block.tiles; ++k)
        for (int64_t i = block.begin; i < block.end; ++i)
          for (int64_t j = 0; j < O; ++j)
            prefetch<true>(kept(block.tile + k, i, slot(t)) + j * kept_out_, 2 * S);
      Step::template vote<2>(task, block, v, sbar);
      for (int64_t k = 0; k < block.tiles; ++k) {
        const int64_t tile = block.tile + k;
        for (int64_t n = 0; n < block.capsules(); ++n)
          couple(tile, block.begin + n, Step::dots(task, k, n, 0), Step::dots(task, k, n, 1), t);
        const typename Step::Factors c{kept(tile, block.begin, slot(t)), kept_in_, kept_out_};
        const typename Step::Factors beta{c.data + S, kept_in_, kept_out_};
        Step::add_votes(task, block, k, beta, Step::partial(chunk, tile));
        if (in_.shared) Step::add_votes(task, block, k, c, coupled + tile * Step::sums());
      }
    });
  }

  // From the dot products with v and sbar to c and beta, to be kept.
  void couple(int64_t tile, int64_t i, T* sm, const T* cbar, int t) {
    Step::softmax(tile, i, sm);
    const P mask = Step::mask(tile, i);
    T* c = kept(tile, i, slot(t));
    couple_backward(
        O, in_.over_in, mask, sm, cbar,
        [&](int64_t j) { return P::load(Step::stats(tile, j) + 2 * S); }, c, c + S, kept_out_);
  }

  // The same with in-capsules in the lanes.
  void attend_by_capsule(int task, int64_t chunk, int t) {
    const auto& lanes = Step::capsules_;
    using Q = typename CapsuleLanes<T, P>::Q;
    constexpr int L = Q::samples;
    const int64_t begin = Step::tile_begin(chunk), end = Step::tile_begin(chunk + 1);
    const auto couple = [&](int64_t b, int64_t tile) {
      T *c = Steps::kept_by_capsule(b, tile, slot(t)), *beta = c + O * L;
      lanes.softmax(b, tile, v_ + at(t, own_), Step::stats_, c);
      lanes.dots(b, tile, sbar_ + at(t, own_), beta);
      couple_backward(
          O, in_.over_in, lanes.mask(b, tile), c, beta,
          [&](int64_t j) { return Q::fill(Step::stats(0, j)[2 * S + b]); }, c, beta, L);
      return beta;
    };
    lanes.sum_votes(task, begin, end, Step::partial(chunk, 0), couple);
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

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
  using Samples = typename Step::Samples;
  using Step::in_, Step::O, Step::S;
  using Steps::at, Steps::own_, Steps::slot, Steps::steps_, Steps::v_, Steps::sbar_;
  using Steps::coupled_, Steps::kept, Steps::kept_in_, Steps::kept_out_;

  using Steps::Steps;

  // All of these passes, for the group that was started.
  void find_couplings(const Parallel& parallel) {
    Steps::list_terms();
    if (Step::teams_) return find_couplings_of_teams(parallel);
    Step::prepare(parallel, false);
    parallel_for(parallel, int(Step::tiles_), [&](int tile) { Steps::start(tile); });
    for (int t = steps_ - 1; t >= Steps::stop_; --t) {
      if (in_.over_in)
        Step::template find_stats<2>(parallel, v_ + at(t, Step::sums()),
                                     sbar_ + at(t, Step::sums()));
      Step::for_chunks(parallel, [&](int task, int64_t chunk) { attend(task, chunk, t); });
      parallel_for(parallel, int(Step::tiles_), [&](int tile) { Steps::finish(t, tile); });
    }
  }

  void find_couplings_of_teams(const Parallel& parallel) {
    const auto& lanes = Step::capsules_;
    const int64_t end = lanes.tiles(), sums = Step::sums();
    Step::pack_weights(parallel);
    Step::for_teams(parallel, [&](int task, int64_t tile, const Samples& samples) {
      Steps::start(tile);
      T* to = Step::cleared_partial(0, tile);
      for (int t = steps_ - 1; t >= Steps::stop_; --t) {
        const bool first = t + 1 == steps_;
        // The first pass meets the votes where they are formed, unless it has to know them all.
        if (first && in_.over_in) lanes.form(task, samples, 0, end, false);
        lanes.take_vectors(task, samples.count, v_ + at(t, sums) + tile * sums,
                           sbar_ + at(t, sums) + tile * sums);
        if (in_.over_in) Step::template find_stats<2>(task, tile, samples);
        lanes.clear_sums(task, samples.count);
        const bool forms = first && !in_.over_in;
        const int64_t step = forms ? lanes.block : end;
        for (int64_t k = 0; k < end; k += step) {
          if (forms) lanes.form(task, samples, k, min(k + step, end), false);
          attend_by_capsule(task, samples, tile, k, min(k + step, end), t);
        }
        lanes.take_sums(task, samples.count, to);
        Steps::finish(t, tile);
      }
    });
  }

  void attend(int task, int64_t chunk, int t) {
    T* sums = Step::cleared_partial(chunk, 0, Step::tiles_);
    if (Step::by_capsule_) {
      const Samples samples = Step::few();
      Step::capsules_.take_vectors(task, samples.count, v_ + at(t, own_), sbar_ + at(t, own_));
      Step::capsules_.clear_sums(task, samples.count);
      attend_by_capsule(task, samples, 0, Step::tile_begin(chunk), Step::tile_begin(chunk + 1), t);
      return Step::capsules_.take_sums(task, samples.count, sums);
    }
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

  // The same with in-capsules in the lanes: tiles begin..end-1 of them, of some of the samples in a
  // tile.
  void attend_by_capsule(int task, const Samples& samples, int64_t tile, int64_t begin, int64_t end,
                         int t) {
    const auto& lanes = Step::capsules_;
    using Q = typename CapsuleVotes<T>::Q;
    constexpr int L = Q::samples;
    const int64_t step = Steps::kept_by_capsule_step();
    for (int64_t b = 0; b < samples.count; ++b) {
      const int64_t sample = samples.first + b;
      const auto couple = [&](int64_t k, T* sm) {
        lanes.softmax(sample, k, Step::lane_stats(tile, b), sm);
        T* c = Steps::kept_by_capsule(k, 0, sample - Step::sample(0), slot(t));
        for (int64_t j = 0; j < O; ++j) prefetch<true>(c + (4 * O + j) * step, 2 * L);
        couple_backward(
            O, in_.over_in, lanes.mask(sample, k), sm, sm + O * L,
            [&](int64_t j) { return Q::fill(Step::stats(tile, j)[2 * S + b]); }, c, c + L, step);
        return c + L;
      };
      lanes.template route<2>(task, samples, b, begin, end, couple, step);
    }
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

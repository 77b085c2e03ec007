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
  using Team = typename Step::Team;
  using Step::in_, Step::O, Step::S;
  using Steps::at, Steps::slot, Steps::steps_, Steps::v_, Steps::sbar_;
  using Steps::coupled_, Steps::kept, Steps::kept_in_, Steps::kept_out_;

  using Steps::Steps;

  // All of these passes, for the group that was started.
  void find_couplings(const Parallel& parallel) {
    Steps::list_terms();
    if (Step::by_capsule_) return find_couplings_by_capsule(parallel);
    Step::pack_u(parallel);
    parallel_for(parallel, int(Step::tiles_), [&](int tile) { Steps::start(tile); });
    for (int t = steps_ - 1; t >= Steps::stop_; --t) {
      if (in_.over_in)
        Step::template find_stats<2>(parallel, v_ + at(t, Step::sums()),
                                     sbar_ + at(t, Step::sums()));
      Step::for_chunks(parallel, [&](int task, int64_t chunk) { attend(task, chunk, t); });
      parallel_for(parallel, int(Step::tiles_), [&](int tile) { Steps::finish(t, tile); });
    }
  }

  void find_couplings_by_capsule(const Parallel& parallel) {
    const auto& lanes = Step::capsules_;
    const int64_t sums = Step::sums();
    const auto work = [&](int task, const Team& team, int64_t chunk,
                          const typename Step::Round& round) {
      const int64_t begin = Step::tile_begin(chunk), end = Step::tile_begin(chunk + 1);
      const int count = team.samples.count, t = steps_ - 1 - round.pass;
      const int64_t vectors = at(t, sums) + team.tile * sums;
      // The first pass meets the votes where they are formed, unless it has to know them all.
      const bool forms = round.first && !round.stats;
      if (round.first && !forms) lanes.form(task, team.samples, begin, end, false);
      lanes.take_vectors(task, count, v_ + vectors, sbar_ + vectors);
      if (round.stats) return Step::template find_stats<2>(task, team, chunk);
      lanes.clear_sums(task, count);
      const int64_t step = forms ? lanes.block : max(end - begin, 1);
      for (int64_t k = begin; k < end; k += step) {
        if (forms) lanes.form(task, team.samples, k, min(k + step, end), false);
        attend_by_capsule(task, team, k, min(k + step, end), t);
      }
      lanes.take_sums(task, count, Step::cleared_partial(chunk, team.tile));
    };
    Step::for_teams(
        parallel, steps_ - Steps::stop_, [&](int64_t tile) { Steps::start(tile); }, work,
        [&](int64_t tile, int pass) { Steps::finish(steps_ - 1 - pass, tile); });
  }

  void attend(int task, int64_t chunk, int t) {
    Step::clear(Step::partial(chunk, 0), Step::tiles_ * Step::sums());
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

  // The same with in-capsules in the lanes: tiles begin..end-1 of them.
  void attend_by_capsule(int task, const Team& team, int64_t begin, int64_t end, int t) const {
    const auto& lanes = Step::capsules_;
    using Q = typename CapsuleVotes<T>::Q;
    constexpr int L = Q::samples;
    const int64_t step = Steps::kept_by_capsule_step();
    for (int64_t b = 0; b < team.samples.count; ++b) {
      const int64_t sample = team.samples.first + b;
      const auto couple = [&](int64_t k, T* sm) {
        lanes.softmax(sample, k, Step::lane_stats(team.tile, b), sm);
        T* c = Steps::kept_by_capsule(k, 0, sample - Step::sample(0), slot(t));
        for (int64_t j = 0; j < O; ++j) prefetch<true>(c + (4 * O + j) * step, 2 * L);
        couple_backward(
            O, in_.over_in, lanes.mask(sample, k), sm, sm + O * L,
            [&](int64_t j) { return Q::fill(Step::stats(team.tile, j)[2 * S + b]); }, c, c + L,
            step);
        return c + L;
      };
      lanes.template route<2>(task, team.samples, b, begin, end, couple, step);
    }
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

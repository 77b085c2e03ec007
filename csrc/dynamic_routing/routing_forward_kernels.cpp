#include "dynamic_routing/dynamic_routing_kernels.h"
#include "dynamic_routing/routing_step.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

template <class T, class P>
class Forward : RoutingStep<T, P> {
  using Step = RoutingStep<T, P>;
  using Team = typename Step::Team;
  using Step::D, Step::E, Step::I, Step::in_, Step::O, Step::S, Step::votes_dim_;

 public:
  Forward(const RoutingForward& args, Arena arena, int threads)
      : Step(args.inputs, threads, args.iterations, 0, 0, 2), args_(args) {
    Step::lay_out(arena);
    arena.take(v_, Step::group_tiles_ * Step::sums());
    arena.take(s_, Step::group_tiles_ * (E + votes_dim_) * S);
    Step::memory_.place(arena, Step::tasks_);
    used = arena.used;
  }

  void run(const Parallel& parallel) {
    for (int64_t group = 0; group < Step::groups_; ++group) {
      Step::start_group(group);
      Step::by_capsule_ ? run_teams(parallel) : run_group(parallel);
    }
  }

  size_t used;

 private:
  bool uniform(int t) const { return t == 0 && args_.v == nullptr && Step::uniform_start(); }
  bool last(int t) const { return t + 1 >= args_.iterations; }

  void run_group(const Parallel& parallel) {
    Step::pack_u(parallel);
    parallel_for(parallel, int(Step::tiles_), [&](int tile) { start(tile); });
    for (int t = 0; t < max(args_.iterations, 1); ++t) {
      if (in_.over_in && !uniform(t)) Step::template find_stats<1>(parallel, v_);
      Step::for_chunks(parallel, [&](int task, int64_t chunk) {
        Step::clear(Step::partial(chunk, 0), Step::tiles_ * Step::sums());
        uniform(t) ? add_up(task, chunk) : attend(task, chunk, last(t));
      });
      parallel_for(parallel, int(Step::tiles_), [&](int tile) { finish(t, tile); });
    }
  }

  void run_teams(const Parallel& parallel) {
    const auto& lanes = Step::capsules_;
    const auto work = [&](int task, const Team& team, int64_t chunk,
                          const typename Step::Round& round) {
      const int64_t begin = Step::tile_begin(chunk), end = Step::tile_begin(chunk + 1);
      const int count = team.samples.count;
      lanes.clear_sums(task, count);
      if (round.first)
        lanes.form(task, team.samples, begin, end, uniform(0));
      else if (uniform(round.pass))
        return;  // the first round summed
      if (!uniform(round.pass)) {
        lanes.take_vectors(task, count, v_ + team.tile * Step::sums(), nullptr);
        if (round.stats) return Step::template find_stats<1>(task, team, chunk);
        attend_by_capsule(task, team, begin, end, round.pass);
      }
      lanes.take_sums(task, count, Step::cleared_partial(chunk, team.tile));
    };
    Step::for_teams(
        parallel, max(args_.iterations, 1), [&](int64_t tile) { start(tile); }, work,
        [&](int64_t tile, int t) { finish(t, tile); });
  }

  void start(int64_t tile) {
    T* v = v_ + tile * Step::sums();
    if (args_.v == nullptr) return Step::clear(v, Step::sums());
    T* own = s_ + tile * (E + votes_dim_) * S;
    for (int64_t j = 0; j < O; ++j) {
      const T* from = static_cast<const T*>(args_.v) + (Step::sample(tile) * O + j) * E;
      for (int64_t e = 0; e < E; ++e)
        (T(in_.scale) * P::gather(from + e, O * E, Step::count(tile))).store(own + e * S);
      Step::to_vote_space(j, own, v + j * votes_dim_ * S);
    }
  }

  // All couplings equal: the sum of the votes is a plain matrix product.
  void add_up(int task, int64_t chunk) {
    Step::sweep(task, chunk, [&](const auto& block) {
      const auto& w = block.weights;
      if (in_.shared) {
        for (int64_t t = block.tile; t < block.tile + block.tiles; ++t)
          for (int64_t k = 0; k < block.capsules() * D; ++k) {
            T* sum = Step::partial(chunk, t) + k % D * S;
            (P::load(sum) + P::load(Step::u(t, block.begin) + k * S)).store(sum);
          }
        return;
      }
      Matrix votes{E, Step::se_, block.capsules(), w.in_stride, D, Step::sd_, 0};
      for (int64_t j = 0; j < O; ++j)
        for (int64_t t = block.tile; t < block.tile + block.tiles; ++t) {
          votes.next = t == block.tile ? Step::ahead(w, O, j, block.capsules()) : 0;
          T* sums = Step::partial(chunk, t) + j * E * S;
          product<P>(
              votes, w.at(block.begin, j), Step::u(t, block.begin),
              [&](int64_t e, const P& y) { (P::load(sums + e * S) + y).store(sums + e * S); });
        }
    });
  }

  void attend(int task, int64_t chunk, bool last) {
    Step::sweep(task, chunk, [&](const auto& block) {
      Step::template vote<1>(task, block, v_, nullptr);
      for (int64_t t = 0; t < block.tiles; ++t) {
        for (int64_t n = 0; n < block.capsules(); ++n)
          couple(block.tile + t, block.begin + n, Step::dots(task, t, n, 0), last);
        Step::add_votes(task, block, t, {Step::dots(task, t, 0, 0), 2 * O * S, S},
                        Step::partial(chunk, block.tile + t));
      }
    });
  }

  // Tiles begin..end-1 of in-capsules. Every other pass begins with the samples that the one before
  // ended with, whose votes are still near.
  void attend_by_capsule(int task, const Team& team, int64_t begin, int64_t end, int t) const {
    const auto& lanes = Step::capsules_;
    using Q = typename CapsuleVotes<T>::Q;
    constexpr int L = Q::samples;
    for (int64_t k = 0; k < team.samples.count; ++k) {
      const int64_t b = t % 2 == 0 ? team.samples.count - 1 - k : k;
      const int64_t sample = team.samples.first + b;
      const auto couple = [&](int64_t k, T* c) {
        lanes.softmax(sample, k, Step::lane_stats(team.tile, b), c);
        if (in_.mask != nullptr) {
          const Q mask = lanes.mask(sample, k);
          for (int64_t j = 0; j < O; ++j) (Q::load(c + j * L) * mask).store(c + j * L);
        }
        if (last(t) && args_.couplings != nullptr) {
          T* to = static_cast<T*>(args_.couplings) + (sample * I + k * L) * O;
          for (int64_t j = 0; j < O; ++j) Q::load(c + j * L).scatter(to + j, O, lanes.count(k));
        }
        return c;
      };
      lanes.template route<1>(task, team.samples, b, begin, end, couple, L);
    }
  }

  // From the dot products with v to in-capsule i's coupling coefficients, in place.
  void couple(int64_t tile, int64_t i, T* c, bool last) {
    Step::softmax(tile, i, c);
    if (in_.mask != nullptr) {
      const P mask = Step::mask(tile, i);
      for (int64_t j = 0; j < O; ++j) (P::load(c + j * S) * mask).store(c + j * S);
    }
    if (!last || args_.couplings == nullptr) return;
    T* to = static_cast<T*>(args_.couplings) + (Step::sample(tile) * I + i) * O;
    for (int64_t j = 0; j < O; ++j) P::load(c + j * S).scatter(to + j, I * O, Step::count(tile));
  }

  // From the sums to v and on to the next iteration's logits.
  void finish(int t, int64_t tile) {
    const bool uniform = this->uniform(t), last = this->last(t), pass = args_.iterations == 0;
    if (uniform && last) write_uniform_couplings(tile);
    const int64_t tensor = in_.batch * O * E;
    const T* total = Step::total(tile);
    T* s = s_ + tile * (E + votes_dim_) * S;
    T* step = s + E * S;
    for (int64_t j = 0; j < O; ++j) {
      const bool once = uniform && in_.shared;
      Step::from_vote_space(j, total + (once ? 0 : j) * votes_dim_ * S, s);
      const int64_t at = (Step::sample(tile) * O + j) * E;
      const int count = Step::count(tile);
      for (int64_t e = 0; e < E; ++e) {
        P x = (uniform ? Step::uniform_coupling() : T(1)) * P::load(s + e * S);
        if (args_.bias != nullptr) x += P::fill(static_cast<const T*>(args_.bias)[j * E + e]);
        x.store(s + e * S);
        if (args_.s != nullptr)
          x.scatter(static_cast<T*>(args_.s) + t * tensor + at + e, O * E, count);
      }
      if (pass) continue;
      P f, h;
      Step::squash_of(args_.squash, args_.eps, Step::dot(s, s, E), f, h);
      for (int64_t e = 0; e < E; ++e) {
        const P v = f * P::load(s + e * S);
        if (last) v.scatter(static_cast<T*>(args_.output) + at + e, O * E, count);
        (T(in_.scale) * v).store(s + e * S);
      }
      if (last) continue;
      T* sum = v_ + tile * Step::sums() + j * votes_dim_ * S;
      Step::to_vote_space(j, s, step);
      for (int64_t e = 0; e < votes_dim_; ++e) {
        const P x = P::load(step + e * S);
        (args_.accumulate ? P::load(sum + e * S) + x : x).store(sum + e * S);
      }
    }
  }

  void write_uniform_couplings(int64_t tile) {
    if (args_.couplings == nullptr) return;
    T* to = static_cast<T*>(args_.couplings) + Step::sample(tile) * I * O;
    for (int64_t k = 0; k < Step::count(tile) * I * O; ++k) to[k] = Step::uniform_coupling();
  }

  const RoutingForward& args_;
  T *v_, *s_;
};

// f(instance of Forward for the dtype and the batch)
template <class F>
void with_forward(const RoutingForward& args, void* scratch, int threads, const F& f) {
  const Arena arena{static_cast<char*>(scratch)};
  const auto of = [&](auto number) {
    using T = decltype(number);
    const bool teams = CapsuleLanes<T>::suit_teams(args.inputs, args.iterations);
    with_tile<T>(args.inputs.batch, teams,
                 [&](auto tile) { f(Forward<T, decltype(tile)>(args, arena, threads)); });
  };
  args.inputs.f64 ? of(double()) : of(float());
}

}  // namespace

size_t routing_forward_scratch(const RoutingForward& args, int threads) {
  size_t bytes = 0;
  with_forward(args, nullptr, threads, [&](const auto& forward) { bytes = forward.used; });
  return bytes;
}

void routing_forward(const RoutingForward& args, void* scratch, const Parallel& parallel) {
  with_forward(args, scratch, parallel.threads, [&](auto forward) { forward.run(parallel); });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

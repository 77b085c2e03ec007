#pragma once

#include "dynamic_routing/routing_step.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Couplings kept between the passes; more where the weight itself is larger. Beside the votes of
// teams, less.
constexpr int64_t kept_bytes = 24 << 20, kept_by_teams_bytes = 12 << 20;

// A routing pass is one step with a given v.
inline bool is_pass(const RoutingBackward& args) { return args.iterations == 0; }
inline int backward_steps(const RoutingBackward& args) {
  return is_pass(args) ? 1 : args.iterations;
}
// The step at which couplings begin to differ from one another.
inline int first_step(const RoutingBackward& args) {
  const RoutingInputs& in = args.inputs;
  return in.prior == nullptr && in.mask == nullptr && args.v == nullptr ? 1 : 0;
}
// The last of the passes over the votes, which go from the last step to the first.
inline int stop_step(const RoutingBackward& args) {
  const bool last_only =
      args.detach_votes && args.grad_bias == nullptr && args.grad_prior == nullptr;
  return int(max(first_step(args), last_only ? backward_steps(args) - 1 : 0));
}
inline int backward_passes(const RoutingBackward& args) {
  return int(max(backward_steps(args) - stop_step(args), 0));
}

// Of the backward passes (routing_backward_couplings.h) what belongs to the out-capsules: s, v and
// sbar of every step, and R, from which the step before gets its sbar. And what the passes leave to
// that of the gradients: where c and beta of each step are kept, and the products of X.
template <class T, class P>
class BackwardSteps : protected RoutingStep<T, P> {
 protected:
  using Step = RoutingStep<T, P>;
  using Step::D, Step::E, Step::I, Step::in_, Step::O, Step::S, Step::votes_dim_;

  // One product of X: coefficients (a slot of kept_), vectors [tile, O, votes_dim], the same in the
  // out-capsules' own space, and for a shared weight sum_i coefficient_ij u_i.
  struct Term {
    int slot;
    const T *vectors, *own, *weighted_u;
  };

  BackwardSteps(const RoutingBackward& args, Arena& arena, int threads)
      : Step(args.inputs, threads, backward_passes(args), 2 * backward_passes(args),
             kept_limit(args), 3),
        args_(args),
        steps_(backward_steps(args)),
        first_(first_step(args)),
        stop_(stop_step(args)),
        slots_(2 * backward_passes(args)),
        own_(O * E * S) {
    const int64_t tiles = Step::group_tiles_, sums = Step::sums();
    Step::lay_out(arena);
    arena.take(s_, steps_ * tiles * own_);
    arena.take(own_v_, steps_ * tiles * own_);
    arena.take(own_sbar_, steps_ * tiles * own_);
    arena.take(rest_, tiles * own_);
    arena.take(step_, tiles * E * S);
    arena.take(base_, tiles * sums);
    keep(arena);
    arena.take(terms_, 2 * steps_ + 1);
    if (in_.shared) {
      arena.take(v_, steps_ * tiles * sums);
      arena.take(sbar_, steps_ * tiles * sums);
      arena.take(coupled_, Step::chunks_ * tiles * sums);
      arena.take(weighted_u_, (2 * steps_ + 1) * tiles * sums);
    } else {
      v_ = own_v_;
      sbar_ = own_sbar_;
    }
  }

  static int64_t kept_limit(const RoutingBackward& args) {
    const RoutingInputs& in = args.inputs;
    if (Step::Capsules::suit_teams(in, backward_passes(args))) return kept_by_teams_bytes;
    const int64_t size = in.f64 ? 8 : 4;
    return max(kept_bytes,
               (in.shared ? 1 : in.in_capsules) * in.out_capsules * in.out_dim * in.in_dim * size);
  }
  int64_t at(int64_t t, int64_t tile_numbers) const {
    return t * Step::group_tiles_ * tile_numbers;
  }
  // Where c and beta are kept: in the scratch, or, if they fit, in the gradient of the same
  // weights, which is written when they have been read.
  void keep(Arena& arena) {
    if (Step::by_capsule_) {
      arena.take(kept_, Step::capsules_.tiles() * O * kept_by_capsule_step());
      return;
    }
    const int64_t numbers = slots_ * S, weights = E * D, line = 64 / int(sizeof(T));
    const int64_t* stride = args_.grad_weight_stride;
    const bool lent = args_.grad_weight != nullptr && !in_.shared && Step::groups_ == 1 &&
                      numbers * Step::group_tiles_ <= weights &&
                      (E - 1) * stride[2] + (D - 1) * stride[3] + 1 == weights &&
                      stride[0] % line == 0 && stride[1] % line == 0 &&
                      reinterpret_cast<uintptr_t>(args_.grad_weight) % 64 == 0;
    if (lent) {
      kept_ = static_cast<T*>(args_.grad_weight);
      kept_tile_ = numbers;
      kept_in_ = stride[1];
      kept_out_ = stride[0];
    } else {
      kept_out_ = numbers;
      kept_in_ = O * kept_out_;
      kept_tile_ = I * kept_in_;
      arena.take(kept_, Step::group_tiles_ * kept_tile_);
    }
  }
  // Of out-capsule 0; the others' lie kept_out_ apart.
  T* kept(int64_t tile, int64_t i, int slot) const {
    return kept_ + tile * kept_tile_ + i * kept_in_ + slot * S;
  }
  // Of a tile of in-capsules, out-capsule j and sample b of the group. The last pass goes through
  // the samples for one j after the other; the next lies kept_by_capsule_step() on.
  T* kept_by_capsule(int64_t tile, int64_t j, int64_t b, int slot) const {
    return kept_ + (tile * O + j) * kept_by_capsule_step() +
           (b * slots_ + slot) * CapsuleLanes<T>::L;
  }
  int64_t kept_by_capsule_step() const {
    return Step::group_tiles_ * Step::tile_samples_ * slots_ * CapsuleLanes<T>::L;
  }
  int slot(int t) const { return 2 * (t - stop_); }
  bool votes_vary(int t) const { return !args_.detach_votes || t + 1 == steps_; }

  // Step 0 has all couplings equal and a part in X.
  bool starts_alike() const { return first_ == 1 && votes_vary(0); }

  void list_terms() {
    const int64_t sums = Step::sums();
    term_count_ = 0;
    for (int t = stop_; t < steps_; ++t) {
      if (!votes_vary(t)) continue;
      const T* weighted_u = weighted_u_ + at(2 * t, sums);
      terms_[term_count_++] = {slot(t), sbar_ + at(t, sums), own_sbar_ + at(t, own_), weighted_u};
      if (args_.detach_votes || (t == 0 && !is_pass(args_))) continue;
      terms_[term_count_++] = {slot(t) + 1, v_ + at(t, sums), own_v_ + at(t, own_),
                               weighted_u + at(1, sums)};
    }
  }

  P load_tensor(const void* tensor, int64_t tile, int64_t j, int64_t e) const {
    const T* p = static_cast<const T*>(tensor) + (Step::sample(tile) * O + j) * E + e;
    return P::gather(p, O * E, Step::count(tile));
  }

  // Everything that s alone determines, and the last step's sbar.
  void start(int64_t tile) {
    Step::clear(rest_ + tile * own_, own_);
    Step::clear(base_ + tile * Step::sums(), Step::sums());
    const int64_t tensor = in_.batch * O * E;
    for (int64_t j = 0; j < O; ++j) {
      T *v = nullptr, *before = nullptr;
      for (int t = 0; t < steps_; ++t) {
        T* s = s_ + at(t, own_) + tile * own_ + j * E * S;
        for (int64_t e = 0; e < E; ++e)
          load_tensor(static_cast<const T*>(args_.s) + t * tensor, tile, j, e).store(s + e * S);
        v = own_v_ + at(t, own_) + tile * own_ + j * E * S;
        if (t == 0) {
          for (int64_t e = 0; e < E; ++e)
            (args_.v == nullptr ? P::fill(T(0)) : T(in_.scale) * load_tensor(args_.v, tile, j, e))
                .store(v + e * S);
        } else {
          const T* s_before = s - at(1, own_);
          P f, h;
          Step::squash_of(args_.squash, args_.eps, Step::dot(s_before, s_before, E), f, h);
          for (int64_t e = 0; e < E; ++e) {
            const P more = T(in_.scale) * (f * P::load(s_before + e * S));
            (args_.accumulate ? P::load(before + e * S) + more : more).store(v + e * S);
          }
        }
        if (in_.shared)
          Step::to_vote_space(j, v, v_ + at(t, Step::sums()) + (tile * O + j) * votes_dim_ * S);
        before = v;
      }
      T* grad = step_ + tile * E * S;
      for (int64_t e = 0; e < E; ++e) load_tensor(args_.grad, tile, j, e).store(grad + e * S);
      enter(steps_ - 1, tile, j, grad);
    }
    if (in_.shared && starts_alike()) weigh_u_alike(tile);
  }

  // sbar of step t from the gradient of its v.
  void enter(int t, int64_t tile, int64_t j, const T* grad) {
    const int64_t own_at = at(t, own_) + tile * own_ + j * E * S;
    const T* s = s_ + own_at;
    T* sbar = own_sbar_ + own_at;
    P f = P::fill(T(1)), h = P::fill(T(0));
    if (!is_pass(args_)) Step::squash_of(args_.squash, args_.eps, Step::dot(s, s, E), f, h);
    const P along = h * Step::dot(s, grad, E);
    for (int64_t e = 0; e < E; ++e) {
      const P y = f * P::load(grad + e * S) + along * P::load(s + e * S);
      y.store(sbar + e * S);
    }
    T* votes = sbar_ + at(t, Step::sums()) + (tile * O + j) * votes_dim_ * S;
    if (in_.shared) Step::to_vote_space(j, sbar, votes);
    if (t != 0 || !starts_alike()) return;
    T* base = base_ + (tile * O + j) * votes_dim_ * S;
    for (int64_t e = 0; e < votes_dim_; ++e)
      (Step::uniform_coupling() * P::load(votes + e * S)).store(base + e * S);
  }

  // R from the sums, and the sbar of the step before.
  void finish(int t, int64_t tile) {
    const int64_t sums = Step::sums();
    const T* total = Step::total(tile);
    if (in_.shared) {
      T* c_total = weighted_u_ + at(2 * t, sums) + tile * sums;
      Step::clear(c_total, sums);
      for (int64_t chunk = 0; chunk < Step::chunks_; ++chunk)
        Step::add(c_total, coupled_ + (chunk * Step::group_tiles_ + tile) * sums, sums);
      T* beta_total = c_total + at(1, sums);
      Step::clear(beta_total, sums);
      Step::add(beta_total, total, sums);
    }
    for (int64_t j = 0; j < O; ++j) {
      T* rest = rest_ + tile * own_ + j * E * S;
      T* step = step_ + tile * E * S;
      Step::from_vote_space(j, total + j * votes_dim_ * S, step);
      for (int64_t e = 0; e < E; ++e) {
        const P x = T(in_.scale) * P::load(step + e * S);
        (args_.accumulate ? P::load(rest + e * S) + x : x).store(rest + e * S);
        if (args_.grad_v != nullptr) {
          T* to = static_cast<T*>(args_.grad_v) + (Step::sample(tile) * O + j) * E + e;
          x.scatter(to, O * E, Step::count(tile));
        }
      }
      if (t > 0) enter(t - 1, tile, j, rest);
    }
  }

  // The equal couplings' sum_i c_ij u_i, the same for every j.
  void weigh_u_alike(int64_t tile) {
    T* to = weighted_u_ + at(2 * steps_, Step::sums()) + tile * Step::sums();
    for (int64_t d = 0; d < D; ++d) {
      P sum = P::fill(T(0));
      for (int64_t i = 0; i < I; ++i) sum += P::load(Step::u(tile, i) + d * S);
      for (int64_t j = 0; j < O; ++j) (Step::uniform_coupling() * sum).store(to + (j * D + d) * S);
    }
  }

  const RoutingBackward& args_;
  const int steps_, first_, stop_, slots_;
  const int64_t own_;  // numbers of a tile in the out-capsules' own space
  int term_count_ = 0;
  int64_t kept_tile_, kept_in_, kept_out_;
  T *s_, *own_v_, *own_sbar_, *v_, *sbar_, *rest_, *step_, *base_, *kept_;
  T *coupled_ = nullptr, *weighted_u_ = nullptr;
  Term* terms_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

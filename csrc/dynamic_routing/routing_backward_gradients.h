#pragma once

#include "dynamic_routing/outer_products.h"
#include "dynamic_routing/routing_backward_by_capsule.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The most products that one sum in registers runs over.
constexpr int64_t chain = 64;

// The last backward pass: one task owns an in-capsule's grad_u and grad_weight for all samples of
// the group.
template <class T, class P>
class BackwardGradients : protected BackwardByCapsule<T, P> {
 protected:
  using Step = RoutingStep<T, P>;
  using Couplings = BackwardCouplings<T, P>;
  using ByCapsule = BackwardByCapsule<T, P>;
  using ByCapsule::add_;
  using Couplings::args_, Couplings::steps_, Couplings::stop_, Couplings::own_, Couplings::base_;
  using Couplings::at, Couplings::kept, Couplings::kept_in_, Couplings::kept_out_;
  using Couplings::own_sbar_, Couplings::weighted_u_;
  using Couplings::slot, Couplings::slots_, Couplings::starts_alike;
  using Couplings::term_count_, Couplings::terms_;
  using Step::D, Step::E, Step::I, Step::in_, Step::memory_, Step::O, Step::S, Step::votes_dim_;

  BackwardGradients(const RoutingBackward& args, Arena& arena, int threads)
      : ByCapsule(args, arena, threads), outs_(min(max(chain / max(E, 1), 1), O)) {
    if (Step::by_capsule_) return;
    memory_.take(grad_u_, Step::group_tiles_ * Step::block_ * D * S);
    if (in_.shared) {
      arena.take(shared_products_, O * outer(1).numbers());
    } else {
      memory_.take(x_, x_tiles() * x_tile());
      memory_.take(products_, Step::block_ * outer(outs_).numbers());
    }
  }

  void find_gradients(const Parallel& parallel) {
    if (args_.grad_bias != nullptr) sum_grad_bias();
    if (args_.grad_u == nullptr && args_.grad_weight == nullptr && args_.grad_prior == nullptr)
      return;
    if (Step::by_capsule_) return ByCapsule::differentiate_by_capsule(parallel);
    Step::for_chunks(parallel, [&](int task, int64_t chunk) {
      const int64_t begin = Step::chunk_begin(chunk), end = Step::chunk_begin(chunk + 1);
      if (args_.grad_prior != nullptr)
        for (int64_t i = begin; i < end; ++i) sum_grad_prior(i);
      if (in_.shared)
        shared_grad_u(task, begin, end);
      else
        for (int64_t i = begin; i < end; i += Step::block_)
          differentiate(task, i, min(i + Step::block_, end));
    });
    if (in_.shared && args_.grad_weight != nullptr)
      parallel_for(parallel, int(O), [&](int j) { shared_grad_weight(j); });
  }

  // sum += sum over the terms of coefficient_ij vector_j, for N dimensions from e on and M
  // in-capsules from `kept` on; packs Q from lane `lane` on.
  template <class Q, int N, int M>
  LAMINA_INLINE void add_terms(int64_t tile, const T* kept, int64_t j, int64_t e, int lane,
                               Q (&sum)[M][N]) const {
    const int64_t from = tile * Step::sums() + (j * votes_dim_ + e) * S + lane;
    for (int k = 0; k < term_count_; ++k) {
      const T* factors = kept + terms_[k].slot * S + j * kept_out_ + lane;
      const T* vectors = terms_[k].vectors + from;
      Q factor[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) factor[m] = Q::load(factors + m * kept_in_);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const Q vector = Q::load(vectors + n * S);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sum[m][n] += factor[m] * vector;
      }
    }
  }

  // X of M in-capsules and `outs` out-capsules from j on; `next` are the coefficients that will be
  // read next.
  template <int M>
  void form_x(int64_t tile, int64_t i, int64_t j, int64_t outs, T* x, const T* next) const {
    using Q = Pack<T, P::width, 1>;
    for (int64_t k = 0; k < outs; ++k) {
      for (int m = 0; m < M; ++m) prefetch<false>(next + m * kept_in_ + k * kept_out_, slots_ * S);
      const T* base = base_ + tile * own_ + (j + k) * E * S;
      for (int lane = 0; lane < S; lane += P::width)
        in_blocks<accumulators / 4>(E, [&](auto size, int64_t e) {
          constexpr int N = decltype(size)::value;
          Q sum[M][N];
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[m][n] = Q::load(base + (e + n) * S + lane);
          add_terms<Q, N, M>(tile, kept(tile, i, 0), j + k, e, lane, sum);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n)
              sum[m][n].store(x + m * x_capsule() + (k * E + e + n) * S + lane);
        });
    }
  }

  // The gradients of so many W_ij, or of a shared W_j.
  OuterProducts<P, T> outer(int64_t outs) const { return {outs * E, D}; }
  bool by_lanes() const {
    return args_.grad_weight != nullptr && outer(1).by_lanes(Step::group_tiles_);
  }
  // Of how many tiles X is held at once.
  int64_t x_tiles() const { return by_lanes() ? Step::group_tiles_ : 1; }
  int64_t x_tile() const { return Step::block_ * x_capsule(); }
  int64_t x_capsule() const { return outs_ * E * S; }

  // grad_u and grad_weight of a block of in-capsules. A few out-capsules at a time, so that their X
  // and the weights are met by all that needs them while they are near.
  void differentiate(int task, int64_t begin, int64_t end) {
    const bool by_lanes = this->by_lanes();
    const int64_t capsules = end - begin, sums_tile = Step::block_ * D * S;
    T* x_begin = memory_.of(task, x_);
    T* grad_u = memory_.of(task, grad_u_);
    T* sums = memory_.of(task, products_);
    for (int64_t j = 0; j < O; j += outs_) {
      const int64_t outs = min(outs_, O - j);
      const OuterProducts<P, T> outer = this->outer(outs);
      if (args_.grad_weight != nullptr && !by_lanes)
        __builtin_memset(sums, 0, capsules * outer.numbers() * sizeof(T));
      for (int64_t tile = 0; tile < Step::tiles_; ++tile) {
        T* x = x_begin + (by_lanes ? tile * x_tile() : 0);
        const T* next = tile + 1 < Step::tiles_ ? kept(tile + 1, begin, 0) + j * kept_out_
                        : j + outs < O          ? kept(0, begin, 0) + (j + outs) * kept_out_
                                                : kept(0, end, 0);
        in_blocks<block_capsules>(capsules, [&](auto size, int64_t n) {
          form_x<decltype(size)::value>(tile, begin + n, j, outs, x + n * x_capsule(),
                                        next + n * kept_in_);
        });
        for (int64_t n = 0; n < capsules; ++n) {
          if (args_.grad_u != nullptr)
            add_grad_u(begin + n, j, outs, capsules, tile == 0, x + n * x_capsule(),
                       grad_u + tile * sums_tile + n * D * S);
          if (args_.grad_weight != nullptr && !by_lanes)
            outer.add(x + n * x_capsule(), Step::u(tile, begin + n), Step::count(tile),
                      sums + n * outer.numbers());
        }
      }
      if (args_.grad_weight == nullptr) continue;
      for (int64_t n = 0; n < capsules; ++n) {
        T* of_capsule = sums + n * outer.numbers();
        if (by_lanes)
          outer.sum_lanes(Step::tiles_, x_begin + n * x_capsule(), x_tile(), Step::u(0, begin + n),
                          I * D * S, of_capsule);
        store_grad_weight(outer, of_capsule, j, begin + n, by_lanes);
      }
    }
    if (args_.grad_u == nullptr) return;
    for (int64_t tile = 0; tile < Step::tiles_; ++tile)
      store_grad_u(tile, begin, end, grad_u + tile * sums_tile);
  }

  // sums [D] += W_ij^T X_ij over `outs` out-capsules from j on; from the first on anew. The weights
  // that come next are prefetched where `ahead`.
  void add_grad_u(int64_t i, int64_t j, int64_t outs, int64_t capsules, bool ahead, const T* x,
                  T* sums) const {
    const typename Step::Weights w = Step::weights();
    const int64_t next =
        j + outs < O ? outs * w.out_stride : capsules * w.in_stride - j * w.out_stride;
    product<P>({D, Step::sd_, outs, w.out_stride, E, Step::se_, ahead ? next : 0}, w.at(i, j), x,
               [&](int64_t d, const P& y) {
                 (j == 0 ? y : P::load(sums + d * S) + y).store(sums + d * S);
               });
  }

  void store_grad_u(int64_t tile, int64_t begin, int64_t end, const T* packs) const {
    from_packs<P>(packs, (end - begin) * D,
                  static_cast<T*>(args_.grad_u) + (Step::sample(tile) * I + begin) * D, I * D,
                  Step::count(tile));
  }
  // From out-capsule j on; `rows` if that is how the sums lie.
  void store_grad_weight(const OuterProducts<P, T>& outer, const T* sums, int64_t j, int64_t i,
                         bool rows) const {
    const int64_t* stride = args_.grad_weight_stride;
    T* to = static_cast<T*>(args_.grad_weight) + j * stride[0] + i * stride[1];
    rows ? outer.store_rows(sums, E, stride, add_, to) : outer.store(sums, E, stride, add_, to);
  }

  void shared_grad_u(int task, int64_t begin, int64_t end) {
    if (args_.grad_u == nullptr) return;
    T* grad_u = memory_.of(task, grad_u_);
    for (int64_t tile = 0; tile < Step::tiles_; ++tile)
      for (int64_t i = begin; i < end; ++i) {
        in_blocks<row_block<P>>(D, [&](auto size, int64_t d) {
          constexpr int N = decltype(size)::value;
          P sum[1][N];
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[0][n] = P::fill(T(0));
          for (int64_t j = 0; j < O; ++j) {
            const T* base = base_ + tile * Step::sums() + (j * D + d) * S;
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[0][n] += P::load(base + n * S);
            add_terms<P, N, 1>(tile, kept(tile, i, 0), j, d, 0, sum);
          }
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[0][n].store(grad_u + (d + n) * S);
        });
        store_grad_u(tile, i, i + 1, grad_u);
      }
  }

  // W_j's gradient: every term's vector times its weighted sum of u.
  void shared_grad_weight(int64_t j) {
    const OuterProducts<P, T> outer = this->outer(1);
    T* sums = shared_products_ + j * outer.numbers();
    __builtin_memset(sums, 0, outer.numbers() * sizeof(T));
    for (int64_t tile = 0; tile < Step::tiles_; ++tile) {
      const auto add_term = [&](const T* own, const T* weighted_u) {
        outer.add(own + tile * own_ + j * E * S, weighted_u + tile * Step::sums() + j * D * S,
                  Step::count(tile), sums);
      };
      if (starts_alike()) add_term(own_sbar_, weighted_u_ + at(2 * steps_, Step::sums()));
      for (int k = 0; k < term_count_; ++k) add_term(terms_[k].own, terms_[k].weighted_u);
    }
    store_grad_weight(outer, sums, j, 0, false);
  }

  void sum_grad_bias() {
    T* grad = static_cast<T*>(args_.grad_bias);
    for (int64_t k = 0; k < O * E; ++k) {
      P sum = P::fill(T(0));
      for (int t = 0; t < steps_; ++t)
        for (int64_t tile = 0; tile < Step::tiles_; ++tile)
          sum += P::load(own_sbar_ + at(t, own_) + tile * own_ + k * S);
      grad[k] = (add_ ? grad[k] : T(0)) + sum.sum();
    }
  }

  void sum_grad_prior(int64_t i) {
    T* grad = static_cast<T*>(args_.grad_prior) + i * O;
    for (int64_t j = 0; j < O; ++j) {
      P total = P::fill(T(0));
      for (int64_t tile = 0; tile < Step::tiles_; ++tile) {
        P sum = P::fill(T(0));
        for (int t = stop_; t < steps_; ++t)
          sum += P::load(kept(tile, i, slot(t) + 1) + j * kept_out_);
        if (in_.prior_per_sample)
          sum.scatter(grad + Step::sample(tile) * I * O + j, I * O, Step::count(tile));
        total += sum;
      }
      if (!in_.prior_per_sample) grad[j] = (add_ ? grad[j] : T(0)) + total.sum();
    }
  }

  const int64_t outs_;  // out-capsules at a time
  TaskPiece<T> x_, products_, grad_u_;
  T* shared_products_ = nullptr;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

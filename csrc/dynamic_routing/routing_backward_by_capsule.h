#pragma once

#include "dynamic_routing/routing_backward_couplings.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Samples whose X is formed before the gradients meet it: the longest chain of additions that a
// gradient of the weight is summed in.
constexpr int64_t x_samples = 8;

// The last backward pass with in-capsules in the lanes (capsule_lanes.h): a pack holds an element
// of grad_u or grad_weight of so many in-capsules, so that no sum over the lanes remains.
template <class T, class P>
class BackwardByCapsule : protected BackwardCouplings<T, P> {
 protected:
  using Step = RoutingStep<T, P>;
  using Couplings = BackwardCouplings<T, P>;
  using Lanes = CapsuleVotes<T>;
  using Q = typename Lanes::Q;
  using Couplings::args_, Couplings::base_, Couplings::kept_by_capsule, Couplings::slot;
  using Couplings::steps_, Couplings::stop_, Couplings::term_count_, Couplings::terms_;
  using Step::D, Step::E, Step::I, Step::in_, Step::O, Step::memory_, Step::S, Step::tile_samples_;
  static constexpr int L = Lanes::L;

  BackwardByCapsule(const RoutingBackward& args, Arena& arena, int threads)
      : Couplings(args, arena, threads),
        lanes_(Step::capsules_),
        grad_block_(E, D, args.grad_weight_stride) {
    if (!Step::by_capsule_) return;
    memory_.take(x_, tiles_at_once * x_samples * E * L);
    memory_.take(u_, u_numbers());
    memory_.take(u_sums_, u_numbers());
    memory_.take(weight_sums_, tiles_at_once * E * D * L);
    arena.take(vectors_, Step::group_tiles_ * tile_samples_ * O * (Couplings::slots_ + 1) * E);
  }

  // From packs of samples to what form_x reads.
  void take_vectors(int64_t tile) const {
    for (int k = 0; k <= term_count_; ++k) {
      const T* packs = (k == 0 ? base_ : terms_[k - 1].vectors) + tile * Step::sums();
      for (int b = 0; b < Step::count(tile); ++b)
        for (int64_t j = 0; j < O; ++j)
          for (int64_t e = 0; e < E; ++e)
            vectors(tile * tile_samples_ + b, j, k)[e] = packs[(j * E + e) * S + b];
    }
  }

  void differentiate_by_capsule(const Parallel& parallel) const {
    parallel_for(parallel, int(Step::tiles_), [&](int tile) { take_vectors(tile); });
    const int64_t tiles = lanes_.tiles();
    Step::share_out(parallel, ceil_div(tiles, tiles_at_once), [&](int task, int64_t k) {
      const int64_t begin = k * tiles_at_once, end = min(begin + tiles_at_once, tiles);
      for (int64_t tile = begin; tile < end && args_.grad_prior != nullptr; ++tile)
        sum_grad_prior_of(tile);
      if (args_.grad_u == nullptr && args_.grad_weight == nullptr) return;
      in_blocks<tiles_at_once>(end - begin, [&](auto size, int64_t n) {
        differentiate_tiles<decltype(size)::value>(task, begin + n);
      });
    });
  }

  bool add_ = false;  // to what the groups before have written

 private:
  static constexpr int tiles_at_once = 2;

  int64_t u_numbers() const { return tiles_at_once * Step::group_tiles_ * tile_samples_ * D * L; }
  // Of sample b of the group: first the base of X, then each term's.
  T* vectors(int64_t b, int64_t j, int k) const {
    return vectors_ + ((b * O + j) * (Couplings::slots_ + 1) + k) * E;
  }
  // Of the group.
  int64_t samples() const { return min(Step::tiles_ * tile_samples_, in_.batch - Step::sample(0)); }

  // N tiles from `tile` on.
  template <int N>
  void differentiate_tiles(int task, int64_t tile) const {
    const int64_t samples = this->samples(), numbers = samples * D * L;
    T *u = memory_.of(task, u_), *grad_u = memory_.of(task, u_sums_);
    for (int n = 0; n < N && args_.grad_weight != nullptr; ++n)
      lanes_.pack_u(Step::sample(0), samples, tile + n, x_samples * in_.u_stride[0],
                    u + n * numbers);
    for (int64_t j = 0; j < O; ++j) differentiate_votes<N>(task, tile, j, u, grad_u);
    if (args_.grad_u == nullptr) return;
    for (int n = 0; n < N; ++n)
      for (int64_t b = 0; b < samples; ++b)
        Lanes::packs_to_rows(
            grad_u + n * numbers + b * D * L, D,
            static_cast<T*>(args_.grad_u) + ((Step::sample(0) + b) * I + (tile + n) * L) * D, D,
            lanes_.count(tile + n), I * D);
  }

  // The parts that out-capsule j has in the gradients of the tiles.
  template <int N>
  void differentiate_votes(int task, int64_t tile, int64_t j, const T* u, T* grad_u) const {
    const int64_t samples = this->samples(), numbers = samples * D * L;
    T* x = memory_.of(task, x_);
    T* grad_weight = memory_.of(task, weight_sums_);
    for (int n = 0; n < N && args_.grad_weight != nullptr; ++n)
      start_grad_weight(tile + n, j, grad_weight + n * E * D * L);
    for (int64_t b = 0; b < samples; b += x_samples) {
      const int64_t count = min(x_samples, samples - b);
      for (int64_t k = 0; k < count; ++k) form_x<N>(b + k, tile, j, x + k * E * L);
      for (int n = 0; n < N; ++n) {
        const T* x_of_n = x + n * x_samples * E * L;
        const int64_t at = n * numbers + b * D * L;
        if (args_.grad_u != nullptr)
          add_grad_u(lanes_.weights(task, tile + n, j), x_of_n, count, j == 0, grad_u + at);
        if (args_.grad_weight != nullptr)
          add_grad_weight(x_of_n, u + at, count, grad_weight + n * E * D * L);
      }
    }
    for (int n = 0; n < N && args_.grad_weight != nullptr; ++n)
      store_grad_weight(tile + n, j, grad_weight + n * E * D * L);
  }

  // X_j of a sample of the group and N tiles, x_samples apart.
  template <int N>
  void form_x(int64_t b, int64_t tile, int64_t j, T* x) const {
    const T* kept[N];
    for (int n = 0; n < N; ++n) {
      kept[n] = kept_by_capsule(tile + n, j, b, 0);
      prefetch<false>(kept[n] + x_samples * Couplings::slots_ * L, Couplings::slots_ * L);
    }
    in_blocks<accumulators / 2>(E, [&](auto size, int64_t e) {
      constexpr int R = decltype(size)::value;
      const T* vectors = this->vectors(b, j, 0) + e;
      Q sum[N][R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sum[n][r] = Q::fill(vectors[r]);
      for (int k = 0; k < term_count_; ++k) {
        vectors += E;
        Q factor[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) factor[n] = Q::load(kept[n] + terms_[k].slot * L);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Q vector = Q::fill(vectors[r]).held();
#pragma GCC unroll 2
          for (int n = 0; n < N; ++n) sum[n][r] += factor[n] * vector;
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sum[n][r].store(x + (n * x_samples * E + e + r) * L);
    });
  }

  // sums [count, D] = or, unless `first`, += X_j W_j
  void add_grad_u(const T* w, const T* x, int64_t count, bool first, T* sums) const {
    const WeightBlock& block = lanes_.weight_block();
    multiply_packs<Q>(count, D, E, PackMatrix<T>{x, E, 1},
                      PackMatrix<T>{w, block.e_step, block.d_step},
                      [&](int64_t b, int64_t d, const Q& y) __attribute__((always_inline)) {
                        T* sum = sums + (b * D + d) * L;
                        (first ? y : Q::load(sum) + y).store(sum);
                      });
  }

  // sums [E, D] += X_j^T u
  void add_grad_weight(const T* x, const T* u, int64_t count, T* sums) const {
    multiply_packs<Q>(E, D, count, PackMatrix<T>{x, 1, E}, PackMatrix<T>{u, D, 1},
                      [&](int64_t e, int64_t d, const Q& y) __attribute__((always_inline)) {
                        T* sum = sums + (e * grad_block_.e_step + d * grad_block_.d_step) * L;
                        (Q::load(sum) + y).store(sum);
                      });
  }

  // 0, or what the groups before have written.
  void start_grad_weight(int64_t tile, int64_t j, T* sums) const {
    if (!add_) {
      __builtin_memset(sums, 0, E * D * L * sizeof(T));
      return;
    }
    grad_block_.each_run([&](int64_t k, int64_t at) {
      Lanes::rows_to_packs(grad_weight(tile, j) + at, args_.grad_weight_stride[1],
                           lanes_.count(tile), grad_block_.run, sums + k * L, 0);
    });
  }
  void store_grad_weight(int64_t tile, int64_t j, const T* sums) const {
    const int64_t* stride = args_.grad_weight_stride;
    grad_block_.each_run([&](int64_t k, int64_t at) {
      Lanes::packs_to_rows(sums + k * L, grad_block_.run, grad_weight(tile, j) + at, stride[1],
                           lanes_.count(tile), stride[0]);
    });
  }
  T* grad_weight(int64_t tile, int64_t j) const {
    const int64_t* stride = args_.grad_weight_stride;
    return static_cast<T*>(args_.grad_weight) + j * stride[0] + tile * L * stride[1];
  }

  void sum_grad_prior_of(int64_t tile) const {
    const int count = lanes_.count(tile);
    T* grad = static_cast<T*>(args_.grad_prior) + tile * L * O;
    for (int64_t j = 0; j < O; ++j) {
      Q total = !add_ || in_.prior_per_sample ? Q::fill(T(0)) : Q::gather(grad + j, O, count);
      for (int64_t b = 0; b < samples(); ++b) {
        Q sum = Q::fill(T(0));
        for (int t = stop_; t < steps_; ++t)
          sum += Q::load(kept_by_capsule(tile, j, b, slot(t) + 1));
        if (in_.prior_per_sample) sum.scatter(grad + (Step::sample(0) + b) * I * O + j, O, count);
        total += sum;
      }
      if (!in_.prior_per_sample) total.scatter(grad + j, O, count);
    }
  }

  const Lanes& lanes_;
  const WeightBlock grad_block_;
  TaskPiece<T> x_, u_, u_sums_, weight_sums_;
  T* vectors_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "dynamic_routing/routing_backward_couplings.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The last backward pass with in-capsules in the lanes (capsule_lanes.h): a pack holds an element
// of grad_u or grad_weight of so many in-capsules, so that no sum over the lanes remains.
template <class T, class P>
class BackwardByCapsule : protected BackwardCouplings<T, P> {
 protected:
  using Step = RoutingStep<T, P>;
  using Couplings = BackwardCouplings<T, P>;
  using Lanes = CapsuleLanes<T, P>;
  using Q = typename Lanes::Q;
  using Couplings::args_, Couplings::base_, Couplings::kept_by_capsule, Couplings::slot;
  using Couplings::steps_, Couplings::stop_, Couplings::term_count_, Couplings::terms_;
  using Step::D, Step::E, Step::I, Step::in_, Step::O, Step::S;
  static constexpr int L = Lanes::L;

  BackwardByCapsule(const RoutingBackward& args, Arena& arena, int threads)
      : Couplings(args, arena, threads),
        lanes_(Step::capsules_),
        grad_block_(E, D, args.grad_weight_stride) {
    if (!Step::by_capsule_) return;
    arena.take(x_of_j_, Step::tasks_ * E * L);
    arena.take(u_sums_, Step::tasks_ * in_.batch * D * L);
    arena.take(weight_sums_, Step::tasks_ * E * D * L);
  }

  void differentiate_by_capsule(int task, int64_t chunk) const {
    for (int64_t tile = Step::tile_begin(chunk); tile < Step::tile_begin(chunk + 1); ++tile) {
      if (args_.grad_prior != nullptr) sum_grad_prior_of(tile);
      if (args_.grad_u != nullptr || args_.grad_weight != nullptr) differentiate_tile(task, tile);
    }
  }

 private:
  void differentiate_tile(int task, int64_t tile) const {
    const int count = lanes_.count(tile);
    T *x = x_of_j_ + task * E * L, *grad_u = u_sums_ + task * in_.batch * D * L;
    T* grad_weight = weight_sums_ + task * E * D * L;
    Step::clear(grad_u, in_.batch * D * L);
    for (int64_t j = 0; j < O; ++j) {
      const T* w =
          args_.grad_u == nullptr ? nullptr : lanes_.weights(task, tile, j, in_.weight_stride[0]);
      for (int64_t b = 0; b < in_.batch; ++b) {
        form_x(b, tile, j, x);
        if (args_.grad_u != nullptr) add_grad_u(w, x, grad_u + b * D * L);
        if (args_.grad_weight != nullptr) add_grad_weight(x, lanes_.u(b, tile), b > 0, grad_weight);
      }
      if (args_.grad_weight == nullptr) continue;
      const int64_t* stride = args_.grad_weight_stride;
      T* to = static_cast<T*>(args_.grad_weight) + j * stride[0] + tile * L * stride[1];
      grad_block_.each_run([&](int64_t k, int64_t at) {
        from_packs<Q>(grad_weight + k * L, grad_block_.run, to + at, stride[1], count, stride[0]);
      });
    }
    if (args_.grad_u == nullptr) return;
    for (int64_t b = 0; b < in_.batch; ++b)
      from_packs<Q>(grad_u + b * D * L, D, static_cast<T*>(args_.grad_u) + (b * I + tile * L) * D,
                    D, count);
  }

  // X_j of a tile.
  void form_x(int64_t b, int64_t tile, int64_t j, T* x) const {
    in_blocks<8>(E, [&](auto size, int64_t e) {
      constexpr int N = decltype(size)::value;
      const int64_t at = (j * E + e) * S + b;
      Q sum[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[n] = Q::fill(base_[at + n * S]);
      for (int k = 0; k < term_count_; ++k) {
        const Q factor = Q::load(kept_by_capsule(b, tile, terms_[k].slot) + j * L);
        const T* vectors = terms_[k].vectors + at;
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sum[n] += vectors[n * S] * factor;
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[n].store(x + (e + n) * L);
    });
  }

  // sums [D] += W_j^T X_j
  void add_grad_u(const T* w, const T* x, T* sums) const {
    const auto& block = lanes_.weight_block();
    in_blocks<8>(D, [&](auto size, int64_t d) {
      constexpr int N = decltype(size)::value;
      Q sum[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[n] = Q::fill(T(0));
      for (int64_t e = 0; e < E; ++e) {
        const T* column = w + (e * block.e_step + d * block.d_step) * L;
        const Q right = Q::load(x + e * L);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sum[n] += Q::load(column + n * block.d_step * L) * right;
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) (Q::load(sums + (d + n) * L) + sum[n]).store(sums + (d + n) * L);
    });
  }

  // sums [E, D] = or, `onto`, += X_j u^T
  void add_grad_weight(const T* x, const T* u, bool onto, T* sums) const {
    for (int64_t e = 0; e < E; ++e) {
      const Q left = Q::load(x + e * L);
      for (int64_t d = 0; d < D; ++d) {
        T* sum = sums + (e * grad_block_.e_step + d * grad_block_.d_step) * L;
        const Q before = onto ? Q::load(sum) : Q::fill(T(0));
        (before + left * Q::load(u + d * L)).store(sum);
      }
    }
  }

  void sum_grad_prior_of(int64_t tile) const {
    T* grad = static_cast<T*>(args_.grad_prior) + tile * L * O;
    for (int64_t j = 0; j < O; ++j) {
      Q total = Q::fill(T(0));
      for (int64_t b = 0; b < in_.batch; ++b) {
        Q sum = Q::fill(T(0));
        for (int t = stop_; t < steps_; ++t)
          sum += Q::load(kept_by_capsule(b, tile, slot(t) + 1) + j * L);
        if (in_.prior_per_sample) sum.scatter(grad + b * I * O + j, O, lanes_.count(tile));
        total += sum;
      }
      if (!in_.prior_per_sample) total.scatter(grad + j, O, lanes_.count(tile));
    }
  }

  const Lanes& lanes_;
  const typename Lanes::Block grad_block_;
  T *x_of_j_, *u_sums_, *weight_sums_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

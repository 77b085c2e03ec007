#pragma once

#include "common/arena.h"
#include "dynamic_routing/dynamic_routing_kernels.h"
#include "dynamic_routing/products.h"
#include "dynamic_routing/softmax.h"
#include "dynamic_routing/transpose.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// More samples gain nothing, and their votes should stay in the L3 cache.
constexpr int64_t few_samples = 4;
constexpr int64_t few_votes_bytes = 16 << 20;

// A few samples leave most lanes of a tile of samples (routing_blocks.h) idle. Then the lanes are
// in-capsules, and a tile is so many of them, of one sample. W has to be transposed for that, which
// costs as much as reading it: so the votes, fewer numbers than W has, are formed once a call and
// stay in the scratch. What belongs to the out-capsules (s, v, sbar, R) stays in packs P of
// samples; the passes read it number by number, and sum over the lanes at the end of a chunk.
template <class T, class P>
class CapsuleLanes {
 public:
  using Q = Pack<T, vector_bytes / int(sizeof(T)), 1>;
  static constexpr int L = Q::samples, S = P::samples;

  explicit CapsuleLanes(const RoutingInputs& inputs)
      : in_(inputs),
        B(inputs.batch),
        I(inputs.in_capsules),
        O(inputs.out_capsules),
        D(inputs.in_dim),
        E(inputs.out_dim),
        tiles_(ceil_div(I, L)),
        weight_(E, D, inputs.weight_stride) {}

  // Whether these lanes are the better ones.
  bool suit() const {
    return B > 0 && B <= few_samples && !in_.shared && I >= L && weight_.run > 1 &&
           B * tiles_ * O * E * L * int64_t(sizeof(T)) <= few_votes_bytes;
  }

  void lay_out(Arena& arena, int64_t tasks) {
    arena.take(u_, B * tiles_ * D * L);
    arena.take(votes_, B * tiles_ * O * E * L);
    arena.take(weights_, tasks * E * D * L);
    arena.take(factors_, tasks * 2 * O * L);
    if (in_.over_in) arena.take(stats_, tasks * stats_packs * O * L);
    arena.take(sums_, tasks * O * E * L);
  }

  int64_t tiles() const { return tiles_; }
  int count(int64_t tile) const { return int(min(L, I - tile * L)); }
  T* u(int64_t b, int64_t tile) const { return u_ + (b * tiles_ + tile) * D * L; }
  T* votes(int64_t b, int64_t tile) const { return votes_ + (b * tiles_ + tile) * O * E * L; }
  T* factors(int task) const { return factors_ + task * 2 * O * L; }

  // How the numbers (e, d) of a matrix W_ij lie in memory: `run` of them without a gap. As packs
  // they lie in the same order.
  struct Block {
    int64_t numbers, inner, outer_stride, inner_stride, run, e_step, d_step;

    Block(int64_t E, int64_t D, const int64_t* stride) : numbers(E * D) {
      const bool by_rows = stride[3] == 1;
      inner = by_rows ? D : E;
      outer_stride = stride[by_rows ? 2 : 3];
      inner_stride = stride[by_rows ? 3 : 2];
      run = inner_stride != 1 ? 1 : outer_stride == inner ? numbers : inner;
      e_step = by_rows ? D : 1;
      d_step = by_rows ? 1 : E;
    }
    // f(first number of a run, where it lies)
    template <class F>
    void each_run(const F& f) const {
      for (int64_t k = 0; k < numbers; k += run)
        f(k, k / inner * outer_stride + k % inner * inner_stride);
    }
  };
  const Block& weight_block() const { return weight_; }

  // The weights W_ij of a tile's in-capsules.
  const T* weights(int task, int64_t tile, int64_t j, int64_t ahead) const {
    T* packs = weights_ + task * E * D * L;
    const int64_t *stride = in_.weight_stride, in_stride = stride[1];
    const T* from = static_cast<const T*>(in_.weight) + j * stride[0] + tile * L * in_stride;
    weight_.each_run([&](int64_t k, int64_t at) {
      to_packs<Q>(from + at, in_stride, count(tile), weight_.run, packs + k * L, ahead);
    });
    return packs;
  }

  // u and the votes of the tiles begin..end-1.
  void form_votes(int task, int64_t begin, int64_t end) const {
    const int64_t *stride = in_.u_stride, run = stride[2] == 1 ? D : 1;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t tile = begin; tile < end; ++tile)
        for (int64_t d = 0; d < D; d += run)
          to_packs<Q>(
              static_cast<const T*>(in_.u) + b * stride[0] + tile * L * stride[1] + d * stride[2],
              stride[1], count(tile), run, u(b, tile) + d * L);
    for (int64_t j = 0; j < O; ++j)
      for (int64_t tile = begin; tile < end; ++tile) {
        const T* w = weights(task, tile, j, L * in_.weight_stride[1]);
        for (int64_t b = 0; b < B; ++b) {
          const T* x = u(b, tile);
          T* to = votes(b, tile) + j * E * L;
          in_blocks<4>(E, [&](auto size, int64_t e) {
            constexpr int N = decltype(size)::value;
            Q sum[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sum[n] = Q::fill(T(0));
            for (int64_t d = 0; d < D; ++d) {
              const T* column = w + (e * weight_.e_step + d * weight_.d_step) * L;
              const Q right = Q::load(x + d * L);
#pragma GCC unroll 4
              for (int n = 0; n < N; ++n)
                sum[n] += Q::load(column + n * weight_.e_step * L) * right;
            }
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sum[n].store(to + (e + n) * L);
          });
        }
      }
  }

  // The dot products of a tile's votes with vectors [O, E] of its sample.
  void dots(int64_t b, int64_t tile, const T* vectors, T* to) const {
    const T* vote = votes(b, tile);
    for (int64_t j = 0; j < O; ++j) {
      Q sum = Q::fill(T(0));
      for (int64_t e = 0; e < E; ++e, vote += L, vectors += S) sum += vectors[b] * Q::load(vote);
      sum.store(to + j * L);
    }
  }

  void logits(int64_t b, int64_t tile, const T* v, T* to) const {
    dots(b, tile, v, to);
    const int count = this->count(tile);
    if (in_.prior != nullptr) {
      const T* prior =
          static_cast<const T*>(in_.prior) + (in_.prior_per_sample ? b * I : 0) * O + tile * L * O;
      for (int64_t j = 0; j < O; ++j)
        (Q::load(to + j * L) + Q::gather(prior + j, O, count)).store(to + j * L);
    }
    // Lanes past the last in-capsule have no part in a softmax over the in-capsules.
    for (int64_t j = 0; j < O; ++j)
      for (int l = count; l < L; ++l) to[j * L + l] = lowest<T>;
  }

  // `stats` of a softmax over the in-capsules, of packs P.
  void softmax(int64_t b, int64_t tile, const T* v, const T* stats, T* c) const {
    logits(b, tile, v, c);
    if (!in_.over_in) return softmax_over_out<Q>(O, in_.leaky, c);
    for (int64_t j = 0; j < O; ++j) {
      const T* of_j = stats + j * stats_packs * S + b;
      const Q largest = Q::fill(of_j[0]), rest = Q::fill(of_j[S]);
      (Q::exp(Q::load(c + j * L) - largest) * rest).store(c + j * L);
    }
  }

  Q mask(int64_t b, int64_t tile) const {
    if (in_.mask == nullptr) return Q::fill(T(1));
    const T* p = static_cast<const T*>(in_.mask) + (in_.mask_per_sample ? b * I : 0) + tile * L;
    return Q::gather(p, 1, count(tile));
  }

  // to [O, E] of packs P = sum over the in-capsules of tiles begin..end-1 of factors_ij votes_ij;
  // factors(sample, tile) are packs for each out-capsule.
  template <class F>
  void sum_votes(int task, int64_t begin, int64_t end, T* to, const F& factors) const {
    T* sums = sums_ + task * O * E * L;
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t k = 0; k < O * E; ++k) Q::fill(T(0)).store(sums + k * L);
      for (int64_t tile = begin; tile < end; ++tile) {
        const T* factor = factors(b, tile);
        const T* vote = votes(b, tile);
        T* sum = sums;
        for (int64_t j = 0; j < O; ++j) {
          const Q c = Q::load(factor + j * L);
          for (int64_t e = 0; e < E; ++e, vote += L, sum += L)
            (Q::load(sum) + c * Q::load(vote)).store(sum);
        }
      }
      for (int64_t k = 0; k < O * E; ++k) to[k * S + b] = Q::load(sums + k * L).sum();
    }
  }

  // The same tiles' part in the running stats of a softmax over the in-capsules; x are the dot
  // products with sbar, where that is given.
  void find_stats(int task, int64_t begin, int64_t end, const T* v, const T* sbar, T* stats) const {
    T *logits = factors(task), *x = logits + O * L, *packs = stats_ + task * stats_packs * O * L;
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t j = 0; j < O; ++j) start_stats<Q>(packs + j * stats_packs * L);
      for (int64_t tile = begin; tile < end; ++tile) {
        this->logits(b, tile, v, logits);
        if (sbar != nullptr) dots(b, tile, sbar, x);
        const Q mask = this->mask(b, tile);
        for (int64_t j = 0; j < O; ++j)
          merge_stats(packs + j * stats_packs * L, Q::load(logits + j * L), Q::fill(T(1)),
                      sbar == nullptr ? Q::fill(T(0)) : mask * Q::load(x + j * L));
      }
      for (int64_t j = 0; j < O; ++j) {
        const T* lanes = packs + j * stats_packs * L;
        T largest = lanes[0];
        for (int l = 1; l < L; ++l) largest = lanes[l] > largest ? lanes[l] : largest;
        const Q share = Q::exp(Q::load(lanes) - Q::fill(largest));
        T* to = stats + j * stats_packs * S + b;
        to[0] = largest;
        to[S] = (Q::load(lanes + L) * share).sum();
        to[2 * S] = (Q::load(lanes + 2 * L) * share).sum();
      }
    }
  }

 private:
  const RoutingInputs& in_;
  const int64_t B, I, O, D, E, tiles_;
  const Block weight_;
  T *u_, *votes_, *weights_, *factors_, *stats_ = nullptr, *sums_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "dynamic_routing/capsule_lanes.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The votes of a few samples, held with in-capsules in the lanes, and the passes over them.
template <class T>
class CapsuleVotes : public CapsuleLanes<T> {
  using Lanes = CapsuleLanes<T>;
  using Lanes::D, Lanes::E, Lanes::in_, Lanes::O, Lanes::memory_, Lanes::stride_, Lanes::tiles_;

 public:
  using Lanes::add_prior, Lanes::L, Lanes::Lanes;
  using typename Lanes::Q;

  // Tiles met at once: their votes should stay in the L1 from the dot products to the sums.
  static constexpr int block = vector_bytes == 64 ? 2 : 4;

  // Samples of the batch whose votes are held at once: at most `held`.
  struct Samples {
    int64_t first;
    int count;
    T* votes;
  };

  // For so many teams at once of at most `held` samples.
  void lay_out(Arena& arena, int64_t teams, int64_t held, bool packed) {
    Lanes::lay_out(arena, packed);
    held_ = held;
    arena.take(votes_, teams * held * sample_step());
    memory_.take(u_, held * D * L);
    memory_.take(sums_, held * O * E * L);
    memory_.take(dots_, block * 2 * O * L);
    memory_.take(vectors_, held * 2 * O * E);
    if (in_.over_in) memory_.take(stats_, stats_packs * O * L);
  }
  // With their votes in the memory of that number.
  Samples samples(int64_t place, int64_t first, int count) const {
    return {first, count, votes_ + place * held_ * sample_step()};
  }

  // The vectors [O, E] that the votes will meet, one set or two of them, from packs of samples.
  void take_vectors(int task, int count, const T* first, const T* second) const {
    for (int64_t b = 0; b < count; ++b)
      for (int64_t k = 0; k < O * E; ++k) {
        vectors(task, b, 0)[k] = first[k * stride_ + b];
        if (second != nullptr) vectors(task, b, 1)[k] = second[k * stride_ + b];
      }
  }
  // Each task adds up sums [O, E] of so many samples, over in-capsules that lie in lanes.
  void clear_sums(int task, int count) const {
    __builtin_memset(sums(task, 0), 0, count * O * E * L * sizeof(T));
  }
  // On to packs of samples.
  void take_sums(int task, int count, T* to) const {
    for (int64_t b = 0; b < count; ++b) add_lanes(sums(task, b), to + b);
  }

  // The votes of tiles begin..end-1, and, with `add`, their sums.
  void form(int task, const Samples& samples, int64_t begin, int64_t end, bool add) const {
    for (int64_t tile = begin; tile < end; ++tile) {
      T* u = memory_.of(task, u_);
      Lanes::pack_u(samples.first, samples.count, tile, L * in_.u_stride[1], u);
      for (int64_t j = 0; j < O; ++j) {
        const T* w = Lanes::weights(task, tile, j);
        add ? form<true>(task, samples, tile, j, w, u) : form<false>(task, samples, tile, j, w, u);
      }
    }
  }

  // Tiles begin..end-1 of sample b: their dot products with DOTS sets of vectors, from which
  // couple(tile, dots) makes packs of factors, so far apart for each out-capsule; and the sums of
  // the votes times these.
  template <int DOTS, class Couple>
  void route(int task, const Samples& samples, int64_t b, int64_t begin, int64_t end,
             const Couple& couple, int64_t factor_step) const {
    T* dots = memory_.of(task, dots_);
    in_blocks<block>(end - begin, [&](auto size, int64_t at) {
      constexpr int N = decltype(size)::value;
      const T* vote = votes(samples, b, begin + at);
      meet<DOTS, N>(vote, vectors(task, b, 0), dots);
      const T* factors[N];
      for (int n = 0; n < N; ++n) factors[n] = couple(begin + at + n, dots + n * 2 * O * L);
      add_votes<N>(vote, factors, factor_step, sums(task, b));
    });
  }

  // The same tiles' part in the running stats of a softmax over the in-capsules; x are the dot
  // products with the second set.
  template <int DOTS>
  void find_stats(int task, const Samples& samples, int64_t begin, int64_t end, T* stats) const {
    T *logits = memory_.of(task, dots_), *x = logits + O * L;
    T* packs = memory_.of(task, stats_);
    for (int64_t b = 0; b < samples.count; ++b) {
      const int64_t sample = samples.first + b;
      for (int64_t j = 0; j < O; ++j) start_stats<Q>(packs + j * stats_packs * L);
      for (int64_t tile = begin; tile < end; ++tile) {
        meet<DOTS, 1>(votes(samples, b, tile), vectors(task, b, 0), logits);
        add_prior(sample, tile, logits);
        const Q mask = Lanes::mask(sample, tile);
        for (int64_t j = 0; j < O; ++j)
          merge_stats(packs + j * stats_packs * L, Q::load(logits + j * L), Q::fill(T(1)),
                      DOTS == 2 ? mask * Q::load(x + j * L) : Q::fill(T(0)));
      }
      for (int64_t j = 0; j < O; ++j) {
        const T* lanes = packs + j * stats_packs * L;
        T largest = lanes[0];
        for (int l = 1; l < L; ++l) largest = lanes[l] > largest ? lanes[l] : largest;
        const Q share = Q::exp(Q::load(lanes) - Q::fill(largest));
        T* to = stats + j * stats_packs * stride_ + b;
        to[0] = largest;
        to[stride_] = (Q::load(lanes + L) * share).sum();
        to[2 * stride_] = (Q::load(lanes + 2 * L) * share).sum();
      }
    }
  }

 private:
  // From one sample's votes to the next: not a multiple of the L1 cache's period.
  int64_t sample_step() const {
    constexpr int64_t page = 4096 / sizeof(T);
    return ceil_div(tiles_ * O * E * L, page) * page + page / 8;
  }
  T* votes(const Samples& samples, int64_t b, int64_t tile) const {
    return samples.votes + b * sample_step() + tile * O * E * L;
  }

  T* vectors(int task, int64_t b, int set) const {
    return memory_.of(task, vectors_) + (b * 2 + set) * O * E;
  }
  T* sums(int task, int64_t b) const { return memory_.of(task, sums_) + b * O * E * L; }

  template <bool ADD>
  void form(int task, const Samples& samples, int64_t tile, int64_t j, const T* w,
            const T* u) const {
    const WeightBlock& weight = Lanes::weight_;
    const int64_t step = sample_step(), numbers = O * E * L;
    T *to = votes(samples, 0, tile) + j * E * L, *total = sums(task, 0) + j * E * L;
    multiply_packs<Q>(samples.count, E, D, PackMatrix<T>{u, D, 1},
                      PackMatrix<T>{w, weight.d_step, weight.e_step},
                      [&](int64_t b, int64_t e, const Q& vote) __attribute__((always_inline)) {
                        vote.store(to + b * step + e * L);
                        if (!ADD) return;
                        T* sum = total + b * numbers + e * L;
                        (Q::load(sum) + vote).store(sum);
                      });
  }

  // to [N, 2, O] = the dot products of N tiles' votes with DOTS sets of vectors.
  template <int DOTS, int N>
  LAMINA_INLINE void meet(const T* votes, const T* vectors, T* to) const {
    const int64_t step = O * E * L, second = O * E;
    for (int64_t j = 0; j < O; ++j, to += L) {
      Q sum[DOTS][N];
#pragma GCC unroll 2
      for (int k = 0; k < DOTS; ++k)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[k][n] = Q::fill(T(0));
      for (int64_t e = 0; e < E; ++e, votes += L, ++vectors) {
        const Q left = Q::fill(vectors[0]), right = Q::fill(DOTS == 2 ? vectors[second] : T(0));
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const Q vote = Q::load(votes + n * step).held();
          sum[0][n] += left * vote;
          if (DOTS == 2) sum[DOTS - 1][n] += right * vote;
        }
      }
#pragma GCC unroll 2
      for (int k = 0; k < DOTS; ++k)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[k][n].store(to + (n * 2 + k) * O * L);
    }
  }

  // sums [O, E] += the votes of N tiles times factors.
  template <int N>
  LAMINA_INLINE void add_votes(const T* votes, const T* const (&factors)[N], int64_t factor_step,
                               T* sums) const {
    const int64_t step = O * E * L;
    for (int64_t j = 0; j < O; ++j) {
      Q factor[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) factor[n] = Q::load(factors[n] + j * factor_step);
      for (int64_t e = 0; e < E; ++e, votes += L, sums += L) {
        Q sum = Q::load(sums);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum += factor[n] * Q::load(votes + n * step);
        sum.store(sums);
      }
    }
  }

  // A lane of packs of samples, [O, E], from sums over in-capsules that still lie in lanes.
  void add_lanes(const T* sums, T* to) const {
    for (int64_t k = 0; k < O * E; k += L) {
      const int count = int(min(L, O * E - k));
      typename Q::Vec packs[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        packs[l] = l < count ? Q::load(sums + (k + l) * L).part[0] : typename Q::Vec{};
      const typename Q::Vec totals = lane_sums<Q>(packs);
      for (int l = 0; l < count; ++l) to[(k + l) * stride_] = totals[l];
    }
  }

  int64_t held_;
  T* votes_;
  TaskPiece<T> u_, sums_, dots_, vectors_, stats_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

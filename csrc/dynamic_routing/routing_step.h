#pragma once

#include "dynamic_routing/products.h"
#include "dynamic_routing/routing_blocks.h"
#include "dynamic_routing/softmax.h"

// What the passes forward and backward share: for each block of in-capsules and tiles a task forms
// the votes in the L1 cache, softmaxes, and adds to partial sums of its own. So the votes never
// reach memory, and a pass reads W once.
//
// With a shared W a pass works on u itself: <W_j u_i, v_j> = <u_i, W_j^T v_j> and
// sum_i c_ij W_j u_i = W_j sum_i c_ij u_i. The space of the votes is then that of u.

namespace lamina {
namespace LAMINA_ISA {
namespace {

template <class T, class P>
class RoutingStep : protected RoutingBlocks<T, P> {
 protected:
  using Blocks = RoutingBlocks<T, P>;
  using Block = typename Blocks::Block;
  using Team = typename Blocks::Team;
  using Blocks::ahead, Blocks::count, Blocks::for_chunks, Blocks::sample, Blocks::share_out;
  using Blocks::block_, Blocks::by_capsule_, Blocks::capsules_, Blocks::chunks_;
  using Blocks::Blocks;
  using Blocks::D, Blocks::E, Blocks::I, Blocks::in_, Blocks::O, Blocks::S, Blocks::votes_dim_;
  using Blocks::group_tiles_, Blocks::memory_, Blocks::span_, Blocks::tasks_, Blocks::tiles_;
  using Blocks::sd_, Blocks::se_, Blocks::sweep, Blocks::teams_, Blocks::teams_at_once_;
  using Blocks::tile_begin, Blocks::u, Blocks::weights;

  void lay_out(Arena& arena) {
    Blocks::lay_out(arena);
    if (!by_capsule_) {
      memory_.take(votes_, in_.shared ? 0 : span_ * block_ * O * E * S);
      memory_.take(dots_, span_ * block_ * 2 * O * S);
    }
    arena.take(partial_, chunks_ * group_tiles_ * sums());
    if (in_.over_in) {
      arena.take(partial_stats_, chunks_ * group_tiles_ * stats_packs * O * S);
      arena.take(stats_, group_tiles_ * stats_packs * O * S);
    }
  }

  // One go of a team through its votes: a pass, or, before it, the stats of a softmax over the
  // in-capsules.
  struct Round {
    int pass;
    bool stats, first;
  };
  // start(tile), then all rounds of the team: work(task, team, chunk, round) for each chunk of
  // in-capsules, and finish(tile, pass). Few samples are one team.
  template <class Start, class Work, class Finish>
  void for_teams(const Parallel& parallel, int passes, const Start& start, const Work& work,
                 const Finish& finish) {
    if (teams_ && sample(0) == 0)
      share_out(parallel, capsules_.tiles(), [&](int, int64_t k) { capsules_.pack_weights(k); });
    const int legs = in_.over_in ? 2 : 1;
    const auto round = [&](int n) { return Round{n / legs, n % legs + 1 < legs, n == 0}; };
    const auto end = [&](int64_t tile, int n) {
      round(n).stats ? close_stats(tile) : finish(tile, n / legs);
    };
    const auto team = [&](int64_t tile, int64_t place) {
      return Team{tile, capsules_.samples(place, sample(tile), count(tile))};
    };
    if (chunks_ == 1)
      return share_out(parallel, tiles_, [&](int task, int64_t tile) {
        start(tile);
        for (int n = 0; n < legs * passes; ++n) {
          work(task, team(tile, task), 0, round(n));
          end(tile, n);
        }
      });
    for (int64_t first = 0; first < tiles_; first += teams_at_once_) {
      const int64_t teams = min(teams_at_once_, tiles_ - first);
      parallel_for(parallel, int(teams), [&](int k) { start(first + k); });
      for (int n = 0; n < legs * passes; ++n) {
        share_out(parallel, teams * chunks_, [&](int task, int64_t k) {
          work(task, team(first + k / chunks_, k / chunks_), k % chunks_, round(n));
        });
        parallel_for(parallel, int(teams), [&](int k) { end(first + k, n); });
      }
    }
  }

  int64_t sums() const { return O * votes_dim_ * S; }  // numbers in a tile's sums s
  // Without a prior and a mask the first couplings are all equal.
  bool uniform_start() const { return in_.prior == nullptr && in_.mask == nullptr; }
  T uniform_coupling() const { return T(1) / T(max(in_.over_in ? I : O, 1) + (in_.leaky ? 1 : 0)); }

  // The votes of a block into votes_, and their dot products with DOTS sets of vectors
  // [tile, O, votes_dim] into dots_. An out-capsule's weights and vectors stay in the L1 for all.
  template <int DOTS>
  void vote(int task, const Block& block, const T* first, const T* second) {
    for (int64_t j = 0; j < O; ++j)
      for (int64_t n = 0; n < block.capsules(); ++n)
        for (int64_t t = 0; t < block.tiles; ++t) {
          const int64_t vectors = (block.tile + t) * sums() + j * votes_dim_ * S;
          const T* x = u(block.tile + t, block.begin + n);
          P sum[DOTS];
#pragma GCC unroll 2
          for (int k = 0; k < DOTS; ++k) sum[k] = P::fill(T(0));
          const auto meet = [&](int64_t e, const P& vote) __attribute__((always_inline)) {
            sum[0] += vote * P::load(first + vectors + e * S);
            if (DOTS == 2) sum[DOTS - 1] += vote * P::load(second + vectors + e * S);
          };
          if (in_.shared) {
            for (int64_t d = 0; d < D; ++d) meet(d, P::load(x + d * S));
          } else {
            T* to = votes(task, t, n) + j * E * S;
            const int64_t next = t == 0 ? ahead(block.weights, O, j, block.capsules()) : 0;
            product<P>({E, se_, 1, 0, D, sd_, next}, block.weights.at(block.begin + n, j), x,
                       [&](int64_t e, const P& vote) __attribute__((always_inline)) {
                         vote.store(to + e * S);
                         meet(e, vote);
                       });
          }
#pragma GCC unroll 2
          for (int k = 0; k < DOTS; ++k) sum[k].store(dots(task, t, n, k) + j * S);
        }
  }
  // Of in-capsule n and tile t of the last block.
  T* votes(int task, int64_t t, int64_t n) const {
    return memory_.of(task, votes_) + (t * block_ + n) * O * E * S;
  }
  T* dots(int task, int64_t t, int64_t n, int set) const {
    return memory_.of(task, dots_) + ((t * block_ + n) * 2 + set) * O * S;
  }

  P prior(int64_t tile, int64_t i, int64_t j) const {
    const T* p = static_cast<const T*>(in_.prior) + i * O + j;
    return in_.prior_per_sample ? P::gather(p + sample(tile) * I * O, I * O, count(tile))
                                : P::fill(*p);
  }
  P mask(int64_t tile, int64_t i) const {
    if (in_.mask == nullptr) return P::fill(T(1));
    const T* p = static_cast<const T*>(in_.mask) + i;
    return in_.mask_per_sample ? P::gather(p + sample(tile) * I, I, count(tile)) : P::fill(*p);
  }
  void add_prior(int64_t tile, int64_t i, T* logits) const {
    if (in_.prior != nullptr)
      for (int64_t j = 0; j < O; ++j)
        (P::load(logits + j * S) + prior(tile, i, j)).store(logits + j * S);
  }

  // Turns the dot products of in-capsule i with v into the softmax of its logits, in place.
  void softmax(int64_t tile, int64_t i, T* logits) const {
    add_prior(tile, i, logits);
    if (in_.over_in) {
      for (int64_t j = 0; j < O; ++j) {
        const P largest = P::load(stats(tile, j)), rest = P::load(stats(tile, j) + S);
        (P::exp(P::load(logits + j * S) - largest) * rest).store(logits + j * S);
      }
      return;
    }
    softmax_over_out<P>(O, in_.leaky, logits);
  }

  // A pack for each in- and out-capsule.
  struct Factors {
    const T* data;
    int64_t in_stride, out_stride;
  };
  // sums_j += sum of factors_ij votes_ij over the in-capsules of a block, for one of its tiles.
  void add_votes(int task, const Block& block, int64_t t, const Factors& factors, T* sums) const {
    const T* votes = in_.shared ? u(block.tile + t, block.begin) : this->votes(task, t, 0);
    const int64_t votes_step = in_.shared ? D * S : O * E * S;
    for (int64_t j = 0; j < O; ++j, sums += votes_dim_ * S) {
      in_blocks<row_block<P>>(votes_dim_, [&](auto size, int64_t e) {
        constexpr int N = decltype(size)::value;
        P sum[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sum[n] = P::fill(T(0));
        for (int64_t i = 0; i < block.capsules(); ++i) {
          const P factor = P::load(factors.data + i * factors.in_stride + j * factors.out_stride);
          const T* vote = votes + i * votes_step + e * S;
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sum[n] += factor * P::load(vote + n * S);
        }
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
          (P::load(sums + (e + n) * S) + sum[n]).store(sums + (e + n) * S);
      });
      if (!in_.shared) votes += E * S;
    }
  }

  // A softmax over the in-capsules needs the largest logit and the sum of exponentials of each
  // (sample, out-capsule) before any coefficient is known: one more pass, kept running per chunk.
  // Its gradient, where sbar is given, needs the mean of x = <votes, sbar> by the coefficients:
  // from the same roundings, as nearly all of x may cancel out (<s, sbar> would be the same
  // number).
  template <int DOTS>
  void find_stats(const Parallel& parallel, const T* v, const T* sbar = nullptr) {
    for_chunks(parallel, [&](int task, int64_t chunk) {
      T* chunk_stats = partial_stats(chunk, 0);
      for (int64_t k = 0; k < tiles_ * O; ++k) start_stats<P>(chunk_stats + k * stats_packs * S);
      sweep(task, chunk, [&](const Block& block) {
        vote<DOTS>(task, block, v, sbar);
        for (int64_t t = 0; t < block.tiles; ++t)
          for (int64_t n = 0; n < block.capsules(); ++n) {
            const int64_t tile = block.tile + t, i = block.begin + n;
            T *stats = chunk_stats + tile * stats_packs * O * S, *logits = dots(task, t, n, 0);
            add_prior(tile, i, logits);
            const P mask = this->mask(tile, i);
            const T* x = dots(task, t, n, 1);
            for (int64_t j = 0; j < O; ++j)
              merge_stats(stats + j * stats_packs * S, P::load(logits + j * S), P::fill(T(1)),
                          DOTS == 2 ? mask * P::load(x + j * S) : P::fill(T(0)));
          }
      });
    });
    for (int64_t tile = 0; tile < tiles_; ++tile) close_stats(tile);
  }
  // A chunk's part in those of a team, whose v and sbar have been taken.
  template <int DOTS>
  void find_stats(int task, const Team& team, int64_t chunk) const {
    T* stats = partial_stats(chunk, team.tile);
    for (int64_t j = 0; j < O; ++j) start_stats<P>(stats + j * stats_packs * S);
    capsules_.template find_stats<DOTS>(task, team.samples, tile_begin(chunk),
                                        tile_begin(chunk + 1), stats);
  }
  void close_stats(int64_t tile) {
    for (int64_t j = 0; j < O; ++j) {
      T* total = stats(tile, j);
      start_stats<P>(total, in_.leaky);
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        const T* more = partial_stats(chunk, tile) + j * stats_packs * S;
        merge_stats(total, P::load(more), P::load(more + S), P::load(more + 2 * S));
      }
      const P inverse = P::fill(T(1)) / P::load(total + S);
      inverse.store(total + S);
      (P::load(total + 2 * S) * inverse).store(total + 2 * S);
    }
  }
  T* partial_stats(int64_t chunk, int64_t tile) const {
    return partial_stats_ + (chunk * group_tiles_ + tile) * stats_packs * O * S;
  }
  // Of a softmax over the in-capsules: the largest logit, the inverse of the sum of exponentials,
  // and the mean of x.
  T* stats(int64_t tile, int64_t j) const { return stats_ + (tile * O + j) * stats_packs * S; }
  // Those of lane b, where there are any.
  const T* lane_stats(int64_t tile, int64_t b) const {
    return in_.over_in ? stats(tile, 0) + b : nullptr;
  }

  T* partial(int64_t chunk, int64_t tile) const {
    return partial_ + (chunk * group_tiles_ + tile) * sums();
  }
  T* cleared_partial(int64_t chunk, int64_t tile) const {
    T* sums = partial(chunk, tile);
    clear(sums, this->sums());
    return sums;
  }
  static void clear(T* x, int64_t numbers) {
    for (int64_t k = 0; k < numbers; k += S) P::fill(T(0)).store(x + k);
  }
  static void add(T* to, const T* x, int64_t numbers) {
    for (int64_t k = 0; k < numbers; k += S) (P::load(to + k) + P::load(x + k)).store(to + k);
  }
  // The chunks' partial sums, added up into those of chunk 0.
  T* total(int64_t tile) const {
    for (int64_t chunk = 1; chunk < chunks_; ++chunk)
      add(partial(0, tile), partial(chunk, tile), sums());
    return partial(0, tile);
  }

  // Between out-capsule j's own space and that of the votes.
  void from_vote_space(int64_t j, const T* x, T* out) const {
    if (in_.shared)
      product<P>({E, se_, 1, 0, D, sd_, 0}, weights().at(0, j), x,
                 [&](int64_t e, const P& y) { y.store(out + e * S); });
    else
      for (int64_t e = 0; e < E; ++e) P::load(x + e * S).store(out + e * S);
  }
  void to_vote_space(int64_t j, const T* x, T* out) const {
    if (in_.shared)
      product<P>({D, sd_, 1, 0, E, se_, 0}, weights().at(0, j), x,
                 [&](int64_t d, const P& y) { y.store(out + d * S); });
    else
      for (int64_t e = 0; e < E; ++e) P::load(x + e * S).store(out + e * S);
  }

  static P dot(const T* a, const T* b, int64_t n) {
    P sum = P::fill(T(0));
    for (int64_t k = 0; k < n; ++k) sum += P::load(a + k * S) * P::load(b + k * S);
    return sum;
  }
  // The squash's factors f and h of each lane.
  static void squash_of(SquashKind kind, double eps, const P& q, P& f, P& h) {
    alignas(64) T squares[S], fs[S], hs[S];
    q.store(squares);
    for (int l = 0; l < S; ++l) {
      const SquashFactors<T> factors = squash_factors(kind, squares[l], T(eps));
      fs[l] = factors.f;
      hs[l] = factors.h;
    }
    f = P::load(fs);
    h = P::load(hs);
  }

  T *partial_, *partial_stats_ = nullptr, *stats_ = nullptr;
  TaskPiece<T> votes_, dots_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

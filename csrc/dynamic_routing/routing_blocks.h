#pragma once

#include "common/arena.h"
#include "common/parallel.h"
#include "dynamic_routing/capsule_votes.h"
#include "dynamic_routing/dynamic_routing_kernels.h"
#include "dynamic_routing/transpose.h"

// How a pass over the votes is cut up. Samples lie side by side in the lanes of a vector (lanes.h),
// `samples` of them to a tile; a group of tiles is what the scratch has room for. The in-capsules
// are cut into chunks, one a task, and a chunk into blocks of a few in-capsules and tiles, whose
// weights and votes stay in the caches. A chunk's sums are its own and are added up in the order of
// the chunks, so that no sum depends on the number of threads. W is only ever broadcast, element by
// element: it is read in whatever layout it has. Where it pays, in-capsules lie in the lanes
// (capsule_lanes.h), and the samples of a tile are a team that goes through all passes before the
// next.

namespace lamina {
namespace LAMINA_ISA {
namespace {

constexpr int64_t max_chunks = 16, max_tasks = 16;
// Fewer votes (of a tile each) than this are not worth a task.
constexpr int64_t chunk_votes = 4096;
// The sums of a group of tiles, and the v that it reads, should stay in half an L2 cache. Teams
// have theirs one after the other.
constexpr int64_t group_bytes = 384 << 10, group_of_teams_bytes = 4 << 20;
// The votes of a team that an L2 cache holds are one chunk; those of a larger one are two.
constexpr int64_t chunk_of_team_bytes = 1 << 20;
// Some in-capsules at a time go through all tiles, with their W in the L2; and of those a block at
// a time, with its votes there.
constexpr int64_t weight_bytes = 96 << 10, vote_bytes = 256 << 10;
constexpr int64_t block_capsules = 4;
// So many samples meet an out-capsule's weights one tile after the other, while these are in the
// L1.
constexpr int64_t block_samples = 32;
// Addresses so far apart share a set of the L2.
constexpr int64_t cache_period = 128 << 10;

template <class T, class P>
class RoutingBlocks {
 protected:
  static constexpr int S = P::samples;
  using Capsules = CapsuleVotes<T>;
  // Samples whose in-capsules lie in the lanes, and their tile.
  struct Team {
    int64_t tile;
    typename Capsules::Samples samples;
  };

  // So many passes over the votes. `kept` numbers of each (sample, in-capsule, out-capsule) stay in
  // the scratch, at most `kept_limit` bytes of them, and `vectors` numbers of each (sample, vote
  // dimension).
  RoutingBlocks(const RoutingInputs& inputs, int threads, int passes, int64_t kept,
                int64_t kept_limit, int64_t vectors)
      : in_(inputs),
        I(inputs.in_capsules),
        O(inputs.out_capsules),
        D(inputs.in_dim),
        E(inputs.out_dim),
        votes_dim_(inputs.shared ? D : E),
        so_(inputs.weight_stride[0]),
        si_(inputs.weight_stride[1]),
        se_(inputs.weight_stride[2]),
        sd_(inputs.weight_stride[3]),
        capsules_(inputs, memory_, S),
        teams_(Capsules::suit_teams(inputs, passes)),
        by_capsule_(teams_ || Capsules::suit_few(inputs)),
        tile_samples_(teams_ ? Capsules::team(inputs, S) : S) {
    const int64_t tile_sums = vectors * O * votes_dim_ * S * int64_t(sizeof(T));
    const int64_t tile_kept = kept * I * O * tile_samples_ * int64_t(sizeof(T));
    int64_t fit = (teams_ ? group_of_teams_bytes : group_bytes) / max(tile_sums, 1);
    if (tile_kept > 0) fit = min(fit, kept_limit / tile_kept);
    const int64_t tiles = this->tiles();
    group_tiles_ = ceil_div(tiles, ceil_div(tiles, max(fit, 1)));
    groups_ = ceil_div(tiles, group_tiles_);
    span_ = min(max(block_samples / S, 1), group_tiles_);
    chunks_ = max(min(min(max_chunks, I), I * O * votes_dim_ * group_tiles_ / chunk_votes), 1);
    if (teams_)
      chunks_ = tile_samples_ * Capsules::sample_bytes(inputs) > chunk_of_team_bytes ? 2 : 1;
    teams_at_once_ = 1;
    if (teams_)
      teams_at_once_ = min(threads % chunks_ == 0 ? threads / chunks_ : threads, group_tiles_);
    tasks_ = max(min(min(threads, max_tasks), chunks_ * teams_at_once_), 1);
    const int64_t capsule = O * E * int64_t(sizeof(T));
    block_ = max(min(block_capsules, vote_bytes / max(capsule * S, 1)), 1);
    weight_capsules_ = max(ceil_div(weight_bytes / max(capsule * D, 1), block_), 1) * block_;
  }

  // capsules_ refers to memory_.
  RoutingBlocks(const RoutingBlocks&) = delete;

  void lay_out(Arena& arena) {
    if (by_capsule_) {
      capsules_.lay_out(arena, teams_at_once_, teams_ ? tile_samples_ : in_.batch, teams_);
    } else {
      arena.take(u_, group_tiles_ * I * D * S);
      memory_.take(weights_, in_.shared ? 0 : weight_capsules_ * O * E * D);
    }
  }

  void start_group(int64_t group) {
    first_tile_ = group * group_tiles_;
    tiles_ = min(group_tiles_, tiles() - first_tile_);
  }
  int64_t tiles() const { return max(ceil_div(in_.batch, tile_samples_), 1); }
  int64_t sample(int64_t tile) const { return (first_tile_ + tile) * tile_samples_; }
  int count(int64_t tile) const { return int(min(tile_samples_, in_.batch - sample(tile))); }
  int64_t chunk_begin(int64_t chunk) const { return I * chunk / chunks_; }
  int64_t tile_begin(int64_t chunk) const { return capsules_.tiles() * chunk / chunks_; }

  // f(task, k) for k in 0..count-1. A task has memory of its own, and a share of the k that is the
  // same in every pass, so that what it meets in one is near in the next. When it is done it takes
  // what others have not begun: no sum depends on who does what.
  template <class F>
  void share_out(const Parallel& parallel, int64_t count, const F& f) const {
    struct alignas(128) Share {  // in cache lines of its own, and the one that is fetched along
      int64_t next, end;
    } shares[max_tasks];
    const int64_t tasks = min(tasks_, count);
    for (int64_t task = 0; task < tasks; ++task)
      shares[task] = {count * task / tasks, count * (task + 1) / tasks};
    parallel_for(parallel, int(tasks), [&](int task) {
      for (int64_t turn = 0; turn < tasks; ++turn) {
        Share& share = shares[(task + turn) % tasks];
        for (int64_t k; (k = __atomic_fetch_add(&share.next, 1, __ATOMIC_RELAXED)) < share.end;)
          f(task, k);
      }
    });
  }
  template <class F>
  void for_chunks(const Parallel& parallel, const F& f) const {
    share_out(parallel, chunks_, f);
  }

  // The weights of a few in-capsules, from `first` on.
  struct Weights {
    const T* data;
    int64_t out_stride, in_stride, first;

    const T* at(int64_t i, int64_t j) const {
      return data + j * out_stride + (i - first) * in_stride;
    }
  };
  Weights weights() const { return {static_cast<const T*>(in_.weight), so_, si_, 0}; }

  // In-capsules begin..end-1 of the weight, side by side. In [O, I, E, D] an in-capsule's weights
  // lie apart by what is often a multiple of the cache's period: they would drive one another out.
  Weights gather_weights(int64_t begin, int64_t end, T* to) const {
    const int64_t n = (end - begin) * E * D, bytes = so_ * int64_t(sizeof(T));
    if (si_ != E * D || so_ <= n || tiles_ <= span_) return weights();
    const int64_t places = cache_period / min(bytes & -bytes, cache_period);
    if (O <= 8 * places) return weights();
    for (int64_t j = 0; j < O; ++j)
      __builtin_memcpy(to + j * n, weights().at(begin, j), n * sizeof(T));
    return {to, n, E * D, begin};
  }

  // How far on from the weights of (i, j) lie those of out-capsule j + 1, or, at the last, of the
  // next block's first.
  static int64_t ahead(const Weights& w, int64_t O, int64_t j, int64_t block) {
    return j + 1 < O ? w.out_stride : block * w.in_stride - j * w.out_stride;
  }

  // In-capsules begin..end-1 of a few tiles, and their weights.
  struct Block {
    int64_t tile, tiles, begin, end;
    Weights weights;

    int64_t capsules() const { return end - begin; }
  };
  // visit(Block) until every tile has met all in-capsules of the chunk.
  template <class Visit>
  void sweep(int task, int64_t chunk, const Visit& visit) const {
    const int64_t step = weight_capsules_, end = chunk_begin(chunk + 1);
    for (int64_t first = chunk_begin(chunk); first < end; first += step) {
      const int64_t last = min(first + step, end);
      const Weights w = gather_weights(first, last, memory_.of(task, weights_));
      for (int64_t tile = 0; tile < tiles_; tile += span_)
        for (int64_t i = first; i < last; i += block_)
          visit(Block{tile, min(span_, tiles_ - tile), i, min(i + block_, last), w});
    }
  }

  T* u(int64_t tile, int64_t i) const { return u_ + (tile * I + i) * D * S; }

  // u as packs.
  void pack_u(const Parallel& parallel) {
    const int64_t sample_step = in_.u_stride[0], step = in_.u_stride[1], dim_step = in_.u_stride[2];
    for_chunks(parallel, [&](int, int64_t chunk) {
      const int64_t begin = chunk_begin(chunk), end = chunk_begin(chunk + 1);
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        const T* from = static_cast<const T*>(in_.u) + sample(tile) * sample_step;
        if (dim_step == 1 && step == D) {
          to_packs<P>(from + begin * D, sample_step, count(tile), (end - begin) * D,
                      u(tile, begin));
          continue;
        }
        for (int64_t i = begin; i < end; ++i)
          for (int64_t d = 0; d < D; ++d)
            P::gather(from + i * step + d * dim_step, sample_step, count(tile))
                .store(u(tile, i) + d * S);
      }
    });
  }

  const RoutingInputs& in_;
  const int64_t I, O, D, E, votes_dim_, so_, si_, se_, sd_;
  TaskMemory memory_;
  Capsules capsules_;
  const bool teams_, by_capsule_;
  const int64_t tile_samples_;
  int64_t groups_, group_tiles_, span_, chunks_, teams_at_once_, tasks_, block_, weight_capsules_;
  int64_t first_tile_ = 0, tiles_ = 0;
  T* u_;
  TaskPiece<T> weights_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

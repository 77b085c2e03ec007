#pragma once

#include "common/arena.h"
#include "dynamic_routing/dynamic_routing_kernels.h"
#include "dynamic_routing/products.h"
#include "dynamic_routing/softmax.h"
#include "dynamic_routing/transpose.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// So few samples leave most lanes of a tile of samples (routing_blocks.h) idle.
constexpr int64_t few_samples = 4;
constexpr int64_t few_votes_bytes = 16 << 20;
// A team of samples holds its votes in a share of the L3 cache, beside the weights as packs: at
// most so many for few_samples of them, and twice that for a team of more.
constexpr int64_t few_of_team_bytes = 3 << 20, packed_weight_bytes = 12 << 20;
// What a batch is cut into at least, for as many threads.
constexpr int64_t fewest_teams = 4;

// How the numbers (e, d) of a matrix W_ij lie in memory: `run` of them without a gap. As packs
// they lie in the same order.
struct WeightBlock {
  int64_t numbers, inner, outer_stride, inner_stride, run, e_step, d_step;

  WeightBlock(int64_t E, int64_t D, const int64_t* stride) : numbers(E * D) {
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

// Lanes that are in-capsules: a tile is so many of them, of one sample. W has to be transposed for
// that, and the votes are formed once a call and stay in the scratch. It pays in two cases.
//
// A few samples: their votes are fewer numbers than W has. All tasks work on the same votes, each
// on some of the tiles.
//
// Teams: a few samples at a time go through all of their passes, so that the votes stay in the
// caches. W is transposed once a call, for all teams. Tasks share the in-capsules of a team, not
// the teams: each works on its own part of W and of all that belongs to the in-capsules, in every
// pass.
//
// What belongs to the out-capsules (s, v, sbar, R) stays in packs of samples `stride` numbers
// apart; the passes read it number by number, and sum over the lanes at the end.
template <class T>
class CapsuleLanes {
 public:
  using Q = Pack<T, vector_bytes / int(sizeof(T)), 1>;
  static constexpr int L = Q::samples;

  CapsuleLanes(const RoutingInputs& inputs, TaskMemory& memory, int stride)
      : in_(inputs),
        memory_(memory),
        I(inputs.in_capsules),
        O(inputs.out_capsules),
        D(inputs.in_dim),
        E(inputs.out_dim),
        tiles_(ceil_div(I, L)),
        stride_(stride),
        weight_(E, D, inputs.weight_stride) {}

  // Whether a few samples, or teams for so many passes over the votes, are the better way.
  static bool suit_few(const RoutingInputs& in) {
    return in.batch <= few_samples && suit(in) && in.batch * sample_bytes(in) <= few_votes_bytes;
  }
  static bool suit_teams(const RoutingInputs& in, int passes) {
    return passes > 1 && in.batch > few_samples && suit(in) &&
           few_samples * sample_bytes(in) <= few_of_team_bytes &&
           sample_bytes(in) * in.in_dim <= packed_weight_bytes;
  }
  // By the shape alone, so that no sum depends on the number of threads. In whole blocks of rows of
  // the products that form the votes.
  static int64_t team(const RoutingInputs& in, int64_t most) {
    const int64_t held =
        min(min(most, ceil_div(in.batch, fewest_teams)), 2 * few_of_team_bytes / sample_bytes(in));
    return held > pack_rows ? held - held % pack_rows : held;
  }

  int64_t tiles() const { return tiles_; }
  int count(int64_t tile) const { return int(min(L, I - tile * L)); }

  const WeightBlock& weight_block() const { return weight_; }
  // The weights W_ij of a tile's in-capsules; in working memory of the task, if they are not
  // packed.
  const T* weights(int task, int64_t tile, int64_t j) const {
    if (packed_ != nullptr) return packed_ + (tile * O + j) * E * D * L;
    T* packs = memory_.of(task, weights_);
    transpose_weights(tile, j, packs);
    return packs;
  }
  void pack_weights(int64_t tile) const {
    for (int64_t j = 0; j < O; ++j)
      transpose_weights(tile, j, packed_ + (tile * O + j) * E * D * L);
  }

  // u of a tile's in-capsules, [count, D], for `count` samples from `first` on. What lies `ahead`
  // will be read next.
  void pack_u(int64_t first, int64_t count, int64_t tile, int64_t ahead, T* to) const {
    const int64_t *stride = in_.u_stride, run = stride[2] == 1 ? D : 1;
    for (int64_t b = 0; b < count; ++b, to += D * L)
      for (int64_t d = 0; d < D; d += run)
        rows_to_packs(static_cast<const T*>(in_.u) + (first + b) * stride[0] +
                          tile * L * stride[1] + d * stride[2],
                      stride[1], this->count(tile), run, to + d * L, ahead);
  }

  // to_packs and from_packs of a tile's in-capsules. Half a vector of columns is turned in halves.
  static void rows_to_packs(const T* from, int64_t stride, int count, int64_t columns, T* to,
                            int64_t ahead) {
    return 2 * columns > L ? to_packs<Q>(from, stride, count, columns, to, ahead)
                           : to_packs<Halves>(from, stride, count, columns, to, ahead);
  }
  static void packs_to_rows(const T* from, int64_t columns, T* to, int64_t stride, int count,
                            int64_t ahead) {
    return 2 * columns > L ? from_packs<Q>(from, columns, to, stride, count, ahead)
                           : from_packs<Halves>(from, columns, to, stride, count, ahead);
  }

  // From a sample's dot products with v to the logits, in place.
  void add_prior(int64_t sample, int64_t tile, T* logits) const {
    const int count = this->count(tile);
    if (in_.prior != nullptr) {
      const T* prior = static_cast<const T*>(in_.prior) +
                       (in_.prior_per_sample ? sample * I : 0) * O + tile * L * O;
      for (int64_t j = 0; j < O; ++j)
        (Q::load(logits + j * L) + Q::gather(prior + j, O, count)).store(logits + j * L);
    }
    // Lanes past the last in-capsule have no part in a softmax over the in-capsules.
    for (int64_t j = 0; j < O && count < L; ++j)
      for (int l = count; l < L; ++l) logits[j * L + l] = lowest<T>;
  }

  // On to the softmax; `stats` of one over the in-capsules are those of the sample's lane.
  void softmax(int64_t sample, int64_t tile, const T* stats, T* logits) const {
    add_prior(sample, tile, logits);
    if (!in_.over_in) return softmax_over_out<Q>(O, in_.leaky, logits);
    for (int64_t j = 0; j < O; ++j, stats += stats_packs * stride_) {
      const Q largest = Q::fill(stats[0]), rest = Q::fill(stats[stride_]);
      (Q::exp(Q::load(logits + j * L) - largest) * rest).store(logits + j * L);
    }
  }

  Q mask(int64_t sample, int64_t tile) const {
    if (in_.mask == nullptr) return Q::fill(T(1));
    const T* p =
        static_cast<const T*>(in_.mask) + (in_.mask_per_sample ? sample * I : 0) + tile * L;
    return Q::gather(p, 1, count(tile));
  }

  static int64_t sample_bytes(const RoutingInputs& in) {
    return ceil_div(in.in_capsules, L) * L * in.out_capsules * in.out_dim * int64_t(sizeof(T));
  }

 protected:
  void lay_out(Arena& arena, bool packed) {
    if (packed)
      arena.take(packed_, tiles_ * O * E * D * L);
    else
      memory_.take(weights_, E * D * L);
  }

  const RoutingInputs& in_;
  TaskMemory& memory_;
  const int64_t I, O, D, E, tiles_, stride_;
  const WeightBlock weight_;

 private:
  using Halves = Pack<T, L / 2, 2>;

  static bool suit(const RoutingInputs& in) {
    const int64_t lanes = ceil_div(in.in_capsules, L) * L;
    return in.batch > 0 && !in.shared && lanes <= in.in_capsules + in.in_capsules / 4 &&
           sample_bytes(in) > 0 && WeightBlock(in.out_dim, in.in_dim, in.weight_stride).run > 1;
  }

  void transpose_weights(int64_t tile, int64_t j, T* packs) const {
    const int64_t *stride = in_.weight_stride, in_stride = stride[1];
    const T* from = static_cast<const T*>(in_.weight) + j * stride[0] + tile * L * in_stride;
    weight_.each_run([&](int64_t k, int64_t at) {
      rows_to_packs(from + at, in_stride, count(tile), weight_.run, packs + k * L, stride[0]);
    });
  }

  T* packed_ = nullptr;
  TaskPiece<T> weights_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "conv2d/segments.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// A part of the gradient of the weight: [channels][taps][vectors of targets].
struct GradientPart {
  int64_t group, channel, target;  // the first channel and target
  int channels, vectors;
};

// Where the sums of each share are kept, part by part, until they are added up. A single share is
// the gradient itself.
template <class T>
class GradientShares {
 public:
  GradientShares(const Segments<T>& segments, T* grad_weight)
      : s_(segments), grad_weight_(grad_weight), row_(s_.depth * s_.taps()) {}

  int64_t size() const { return s_.shares > 1 ? s_.shares * s_.share_size() : 0; }
  void place(T* memory) { memory_ = memory; }

  GradientPart part(int64_t task) const {
    if (s_.depthwise) return {0, 0, task * L, 1, 1};
    const int64_t block = task % s_.blocks, set = task / s_.blocks % s_.sets();
    return {task / s_.blocks / s_.sets(), block * L, set * set_lanes<T>,
            s_.count_of(s_.depth, block),
            static_cast<int>(min64(V, ceil_div(s_.targets - set * set_lanes<T>, L)))};
  }

  // sums[channel][tap][target] of taps [first, first + taps) of the task's part, to or onto the
  // share's.
  void put(int64_t share, int64_t task, const T* sums, int64_t first, int64_t taps,
           bool add) const {
    if (s_.shares == 1) return store_part(task, sums, first, taps, add);
    const GradientPart part = this->part(task);
    for (int c = 0; c < part.channels; ++c) {
      const int64_t begin = (c * s_.taps() + first) * set_lanes<T>;
      move(part, sums + begin, at(share, task) + begin, taps, add);
    }
  }

  // All shares' sums, in order, to the gradient.
  void add_up(const Parallel& parallel) const {
    if (s_.shares == 1) return;
    each_task(parallel, s_.parts(), [&](int, int64_t task) {
      const GradientPart part = this->part(task);
      for (int64_t share = 1; share < s_.shares; ++share)
        move(part, at(share, task), at(0, task), part.channels * s_.taps(), true);
      store_part(task, at(0, task), 0, s_.taps(), false);
    });
  }

 private:
  static constexpr int L = lanes<T>, V = tile_vectors<T>;

  T* at(int64_t share, int64_t task) const {
    return memory_ + share * s_.share_size() + task * s_.part_size();
  }

  void move(const GradientPart& part, const T* sums, T* target, int64_t rows, bool add) const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int v = 0; v < part.vectors; ++v) {
        const int64_t place = row * set_lanes<T> + v * L;
        const Vector<T> sum = load(sums + place);
        store(target + place, add ? load(target + place) + sum : sum);
      }
    }
  }

  void store_part(int64_t task, const T* sums, int64_t first, int64_t taps, bool add) const {
    const GradientPart part = this->part(task);
    for (int v = 0; v < part.vectors; ++v) {
      const int64_t target = part.target + v * L;
      const int64_t targets = s_.depthwise ? s_.shape.groups : s_.targets;
      store_vectors(part, sums + v * L, part.group * targets + target,
                    static_cast<int>(min64(L, targets - target)), first, taps, add);
    }
  }

  // One vector of targets, `count` of its lanes.
  void store_vectors(const GradientPart& part, const T* sums, int64_t out, int count, int64_t first,
                     int64_t taps, bool add) const {
    T* const target = grad_weight_ + out * row_ + part.channel * s_.taps();
    // With all taps, the channels of one output channel are one run of memory.
    const bool whole = taps == s_.taps();
    const int64_t runs = whole ? 1 : part.channels, length = whole ? part.channels * taps : taps;
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t begin = run * s_.taps() + first;
      for (int64_t q = 0; q < length; q += L) {
        const int valid = static_cast<int>(min64(L, length - q));
        Vector<T> square[L] = {};
        for (int i = 0; i < valid; ++i) square[i] = load(sums + (begin + q + i) * set_lanes<T>);
        transpose(square);
        for (int lane = 0; lane < count; ++lane) {
          T* const place = target + lane * row_ + begin + q;
          if (add) square[lane] += load(place, valid);
          store(place, square[lane], valid);
        }
      }
    }
  }

  const Segments<T>& s_;
  T* const grad_weight_;
  const int64_t row_;  // elements of grad_weight to each target
  T* memory_ = nullptr;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "conv2d/axis.h"
#include "conv2d/direct.h"
#include "conv2d/finish.h"

// The forward pass and the gradient of the input are one computation: target pixels are sums over
// taps of source pixels, times weights, over the depth (the source's channels). This is what its
// ways of computing share.

namespace lamina {
namespace LAMINA_ISA {
namespace {

template <class S>
struct Correlation {
  using T = Accumulator<S>;
  Source<S> source;
  Finish<S> to;
  int64_t images, groups, depth, targets;  // depth and targets of one group
  int64_t source_height, source_width, height, width;
  Axis vertical, horizontal;
  Weights<S> weights;        // of the first group
  int64_t weights_of_group;  // elements
  int winograd;              // 2, 4, or 0 for direct sums
  bool transposed;

  int64_t blocks() const { return ceil_div(depth, lanes<T>); }
  int64_t sets() const { return ceil_div(targets, set_lanes<T>); }
  int vectors(int64_t set) const {
    return static_cast<int>(
        min64(tile_vectors<T>, ceil_div(targets - set * set_lanes<T>, lanes<T>)));
  }
  Weights<S> weights_of(int64_t group) const {
    Weights<S> found = weights;
    found.data += group * weights_of_group;
    return found;
  }
  // The threads that may write side by side: a byte of a channels_last mask must not be shared.
  Parallel writers(Parallel threads) const {
    if (to.mask != nullptr && to.layout.channels_last && groups > 1 && targets % 8 != 0)
      threads.threads = 1;
    return threads;
  }
};

// Runs body(worker, task) for every task, in order of claim, on as many workers as are of use.
template <class Body>
void each_task(const Parallel& parallel, int64_t tasks, const Body& body) {
  if (tasks <= 0) return;
  const int workers = static_cast<int>(min64(parallel.threads, tasks));
  int64_t next = 0;
  // One copy of the body, whatever the number of workers: GCC may contract a * b + c * d to
  // different pairs of roundings in two.
  const auto work = [&](int worker) __attribute__((noinline, noclone)) {
    for (int64_t task; (task = claim(&next)) < tasks;) body(worker, task);
  };
  if (workers == 1)
    work(0);
  else
    parallel_for(parallel, workers, work);
}

// The images' rows cut into strips of `rows`, each a task; where there are fewer than two for each
// thread, the lane sets are cut as well. How they are cut changes no sum.
struct Strips {
  int64_t height, rows, strips, groups, sets, sets_per_part, parts;

  Strips(int64_t images, int64_t height_, int64_t rows_, int64_t groups_, int64_t sets_,
         int threads)
      : height(height_),
        rows(rows_),
        strips(ceil_div(height_, rows_)),
        groups(groups_),
        sets(sets_) {
    const int64_t units = images * strips * groups;
    const int64_t wanted = threads == 1 ? 1 : ceil_div(2 * threads, units > 0 ? units : 1);
    sets_per_part = ceil_div(sets, min64(wanted, sets));
    parts = ceil_div(sets, sets_per_part);
  }
  int64_t count(int64_t images) const { return images * strips * groups * parts; }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

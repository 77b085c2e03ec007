#pragma once

#include "conv2d/correlation.h"
#include "conv2d/winograd.h"

// A correlation with 3x3 filters and stride 1 by minimal filtering F(M x M, 3x3).

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The least number of tiles that the transformed filters are streamed through for.
constexpr int64_t unit_tiles = 56;
// What all transformed filters may take, and the transformed tiles if the filters take more.
constexpr int64_t transformed_bytes = 6 << 20;

template <class S, int M>
class WinogradCorrelator {
 public:
  using T = Accumulator<S>;

  WinogradCorrelator(const Correlation<S>& problem, const Parallel& parallel)
      : p_(problem),
        parallel_(parallel),
        writers_(problem.writers(parallel)),
        all_down_(ceil_div(problem.height, M)),
        across_(ceil_div(problem.width, M)),
        set_size_(elements * problem.depth * set_lanes<T>) {
    const Reach reached = reach(p_.horizontal, 0, p_.width);
    window_ = {0, reached.begin, 0, across_ * M + 2, 1};
  }

  void run() {
    const int64_t filters = p_.groups * p_.sets() * set_size_ * static_cast<int64_t>(sizeof(T));
    if (filters <= transformed_bytes)
      run_batches();
    else
      run_sets();
  }

 private:
  static constexpr int L = lanes<T>, V = tile_vectors<T>, elements = (M + 2) * (M + 2);

  // The tiles that are worked on together: rows [from, past) of images [first, last).
  struct Batch {
    int64_t group, first, last, from, past, image_tiles, tiles;
  };

  // All batches: strips of `down` rows of tiles, of one image or, where a strip is a whole image,
  // of `together` images.
  struct Cut {
    int64_t down, together, strips, batches;
  };

  Cut cut(int64_t tiles, int threads) const {
    int64_t down = min64(all_down_, ceil_div(tiles, across_));
    const int64_t strips = ceil_div(all_down_, down);
    down = ceil_div(all_down_, strips);
    int64_t together = strips > 1 ? 1 : min64(p_.images, ceil_div(tiles, across_ * down));
    together = min64(together, ceil_div(p_.images, threads));
    return {down, together, strips, ceil_div(p_.images, together)};
  }

  Batch batch_of(const Cut& cut, int64_t index, int64_t strip, int64_t group) const {
    const int64_t first = index * cut.together, from = strip * cut.down * M;
    const int64_t last = min64(first + cut.together, p_.images);
    const int64_t past = min64(from + cut.down * M, p_.height);
    const int64_t image_tiles = ceil_div(past - from, M) * across_;
    return {group, first, last, from, past, image_tiles, (last - first) * image_tiles};
  }

  struct Scratch {
    T *staged, *product, *z;
  };
  // Elements of the parts of a worker's scratch.
  int64_t staged_size(const Cut& cut) const { return (cut.down * M + 2) * window_.row_pitch() * L; }
  int64_t tiles_size(const Cut& cut) const {
    return elements * cut.together * cut.down * across_ * L;
  }
  int64_t scratch_size(const Cut& cut) const {
    return staged_size(cut) + V * tiles_size(cut) + cut.down * M * p_.width * L;
  }
  Scratch scratch_at(T* memory, const Cut& cut) const {
    T* const product = memory + staged_size(cut);
    return {memory, product, product + V * tiles_size(cut)};
  }

  // source[element][block][tile] of one image and block of channels.
  void transform_source(const Batch& batch, int64_t image, int64_t block, T* staged,
                        T* source) const {
    const int64_t down = ceil_div(batch.past - batch.from, M);
    Window window = window_;
    window.top = reach(p_.vertical, batch.from, batch.past).begin;
    window.rows = down * M + 2;
    stage(p_.source, image, batch.group * p_.depth + block * L,
          static_cast<int>(min64(L, p_.depth - block * L)), p_.source_height, p_.source_width,
          window, staged);
    T* const target =
        source + (block * batch.tiles + (image - batch.first) * batch.image_tiles) * L;
    transform_tiles<M>(staged, window.row_pitch(), down, across_, target,
                       p_.blocks() * batch.tiles * L);
  }

  // The products of one lane set, back to pixels and to the output.
  void compute_set(const Batch& batch, int64_t set, const T* source, const T* filters,
                   const Scratch& scratch) const {
    const int64_t no_shift = 0;
    const Sum sum{p_.depth, batch.tiles * L, &no_shift, 1};
    const int vectors = p_.vectors(set);
    for (int e = 0; e < elements; ++e)
      multiply(sum, source + e * p_.blocks() * batch.tiles * L, batch.tiles,
               filters + e * p_.depth * set_lanes<T>, vectors,
               scratch.product + e * V * batch.tiles * L, L, batch.tiles * L);
    for (int v = 0; v < vectors; ++v) {
      const int64_t k = set * set_lanes<T> + v * L;
      for (int64_t image = batch.first; image < batch.last; ++image) {
        const int64_t tile = v * batch.tiles + (image - batch.first) * batch.image_tiles;
        untransform_tiles<M>(scratch.product + tile * L, V * batch.tiles * L,
                             batch.past - batch.from, p_.width, scratch.z);
        finish(p_.to, scratch.z, image, batch.group * p_.targets + k,
               static_cast<int>(min64(L, p_.targets - k)), batch.from * p_.width,
               (batch.past - batch.from) * p_.width);
      }
    }
  }

  // Filters first, then batches of tiles, small enough for a worker's L2, each with all filters.
  void run_batches() {
    const Cut cut = this->cut(unit_tiles, writers_.threads);
    const Strips strips(cut.batches, p_.height, cut.down * M, p_.groups, p_.sets(),
                        writers_.threads);
    const int64_t workers = min64(writers_.threads, strips.count(cut.batches));
    const int64_t source_size = p_.blocks() * tiles_size(cut);
    const int64_t worker_size = source_size + scratch_size(cut);
    const int64_t filters_size = p_.groups * p_.sets() * set_size_;
    Arena arena{static_cast<char*>(
        workspace(Arena::bytes<T>(filters_size) + Arena::bytes<T>(workers * worker_size)))};
    T* const filters = arena.take<T>(filters_size);
    T* const memory = arena.take<T>(workers * worker_size);

    each_task(parallel_, p_.groups * p_.sets(), [&](int, int64_t task) {
      transform_set<M>(p_.weights_of(task / p_.sets()), task % p_.sets(), p_.transposed,
                       filters + task * set_size_, p_.depth * set_lanes<T>);
    });
    each_task(writers_, strips.count(cut.batches), [&](int worker, int64_t task) {
      const int64_t part = task % strips.parts, group = task / strips.parts % p_.groups;
      const int64_t strip = task / strips.parts / p_.groups;
      const Batch batch = batch_of(cut, strip / cut.strips, strip % cut.strips, group);
      T* const source = memory + worker * worker_size;
      const Scratch scratch = scratch_at(source + source_size, cut);
      for (int64_t image = batch.first; image < batch.last; ++image) {
        for (int64_t block = 0; block < p_.blocks(); ++block)
          transform_source(batch, image, block, scratch.staged, source);
      }
      const int64_t end = min64((part + 1) * strips.sets_per_part, p_.sets());
      for (int64_t set = part * strips.sets_per_part; set < end; ++set)
        compute_set(batch, set, source, filters + (group * p_.sets() + set) * set_size_, scratch);
    });
  }

  // Where the transformed filters would be large: tiles first, as many as transformed_bytes hold,
  // then set after set of filters, each transformed by the worker that needs it and never stored.
  void run_sets() {
    const int64_t tile_bytes = elements * p_.blocks() * L * static_cast<int64_t>(sizeof(T));
    const Cut cut = this->cut(transformed_bytes / tile_bytes + 1, 1);
    const int64_t workers = parallel_.threads;
    const int64_t source_size = p_.blocks() * tiles_size(cut);
    const int64_t worker_size = set_size_ + scratch_size(cut);
    Arena arena{static_cast<char*>(
        workspace(Arena::bytes<T>(source_size) + Arena::bytes<T>(workers * worker_size)))};
    T* const source = arena.take<T>(source_size);
    T* const memory = arena.take<T>(workers * worker_size);

    for (int64_t index = 0; index < cut.batches * cut.strips * p_.groups; ++index) {
      const int64_t strip = index / p_.groups;
      const Batch batch = batch_of(cut, strip / cut.strips, strip % cut.strips, index % p_.groups);
      each_task(parallel_, (batch.last - batch.first) * p_.blocks(), [&](int worker, int64_t task) {
        transform_source(batch, batch.first + task / p_.blocks(), task % p_.blocks(),
                         memory + worker * worker_size, source);
      });
      each_task(writers_, p_.sets(), [&](int worker, int64_t set) {
        T* const filters = memory + worker * worker_size;
        transform_set<M>(p_.weights_of(batch.group), set, p_.transposed, filters,
                         p_.depth * set_lanes<T>);
        compute_set(batch, set, source, filters, scratch_at(filters + set_size_, cut));
      });
    }
  }

  const Correlation<S>& p_;
  const Parallel parallel_, writers_;
  const int64_t all_down_, across_, set_size_;
  Window window_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

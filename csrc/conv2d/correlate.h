#pragma once

#include "conv2d/winograd.h"

// The forward pass and the gradient of the input are one computation: target pixels are sums over
// taps of source pixels, times weights, over the depth (the source's channels).

namespace lamina {
namespace LAMINA_ISA {
namespace {

// What a worker's staged source and results may take together, so that they stay in its L2.
constexpr int64_t unit_bytes = 384 << 10;
// The least number of Winograd's tiles that the transformed filters are streamed through for.
constexpr int64_t unit_tiles = 56;

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
  bool winograd, transposed;
};

// Runs body(worker, task) for every task, in order of claim, on as many workers as are of use.
template <class Body>
void each_task(const Parallel& parallel, int64_t tasks, const Body& body) {
  if (tasks <= 0) return;
  const int workers = static_cast<int>(min64(parallel.threads, tasks));
  int64_t next = 0;
  const auto work = [&](int worker) {
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

template <class S>
class Correlator {
 public:
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>, V = tile_vectors<T>;

  Correlator(const Correlation<S>& problem, const Parallel& parallel)
      : p_(problem), parallel_(parallel) {
    const Reach across = reach(p_.horizontal, 0, p_.width);
    window_ = {0, across.begin, 0, across.end - across.begin, p_.horizontal.step};
    if (p_.winograd) window_.columns = round_up(p_.width, 2) + 2;
  }

  void run() {
    if (p_.images == 0) return;
    if (p_.groups > 1 && p_.depth == 1 && p_.targets == 1)
      run_depthwise();
    else if (p_.winograd)
      run_winograd();
    else
      run_direct();
  }

 private:
  int64_t blocks() const { return ceil_div(p_.depth, L); }
  int64_t sets() const { return ceil_div(p_.targets, set_lanes<T>); }
  int vectors(int64_t set) const {
    return static_cast<int>(min64(V, ceil_div(p_.targets - set * set_lanes<T>, L)));
  }
  int64_t phases() const { return p_.vertical.phases * p_.horizontal.phases; }

  // The rows of the source that targets [from, past) reach.
  Window window_of(int64_t from, int64_t past) const {
    Window window = window_;
    const Reach down = reach(p_.vertical, from, past);
    window.top = down.begin;
    window.rows = down.end - down.begin;
    if (p_.winograd) window.rows = round_up(past - from, 2) + 2;
    return window;
  }

  int64_t highest_window(int64_t rows) const {
    int64_t highest = 0;
    for (int64_t from = 0; from < p_.height; from += rows) {
      const int64_t found = window_of(from, min64(from + rows, p_.height)).rows;
      highest = found > highest ? found : highest;
    }
    return highest;
  }

  int64_t strip_rows(int64_t source_blocks, int64_t target_blocks) const {
    const int64_t whole = window_of(0, p_.height).rows;
    const int64_t row =
        source_blocks * whole * window_.row_pitch() / p_.height + target_blocks * p_.width + 1;
    const int64_t fit = unit_bytes / (row * L * static_cast<int64_t>(sizeof(T)));
    const int64_t rows = min64(p_.height, fit < 1 ? 1 : fit);
    return ceil_div(p_.height, ceil_div(p_.height, rows));
  }

  Weights<S> weights_of(int64_t group) const {
    Weights<S> weights = p_.weights;
    weights.data += group * p_.weights_of_group;
    return weights;
  }

  void stage_depth(int64_t image, int64_t group, const Window& window, T* staged) const {
    for (int64_t d = 0; d < p_.depth; d += L, staged += window.block<T>())
      stage(p_.source, image, group * p_.depth + d, static_cast<int>(min64(L, p_.depth - d)),
            p_.source_height, p_.source_width, window, staged);
  }

  // Takes lane sets [begin, end), whose blocks of `pixels` lie at z, to the output.
  void finish_sets(const T* z, int64_t image, int64_t group, int64_t begin, int64_t end,
                   int64_t pixel, int64_t pixels) const {
    for (int64_t k = begin * set_lanes<T>; k < min64(end * set_lanes<T>, p_.targets); k += L) {
      finish(p_.to, z, image, group * p_.targets + k, static_cast<int>(min64(L, p_.targets - k)),
             pixel, pixels);
      z += pixels * L;
    }
  }

  // The threads that may write side by side: a byte of a channels_last mask must not be shared.
  Parallel safe() const {
    Parallel threads = parallel_;
    if (p_.to.mask != nullptr && p_.to.layout.channels_last && p_.groups > 1 && p_.targets % 8 != 0)
      threads.threads = 1;
    return threads;
  }

  void run_direct() {
    const int64_t taps = p_.vertical.taps * p_.horizontal.taps;
    const Parallel threads = safe();
    const int64_t rows = strip_rows(blocks(), sets() * V);
    const Strips strips(p_.images, p_.height, rows, p_.groups, sets(), threads.threads);
    const int64_t staged_size = blocks() * highest_window(rows) * window_.row_pitch() * L;
    const int64_t z_size = strips.sets_per_part * V * rows * p_.width * L;
    const int64_t workers = min64(threads.threads, strips.count(p_.images));
    const int64_t packed_size = sets() * p_.depth * taps * set_lanes<T>;

    Arena arena{static_cast<char*>(workspace(
        Arena::bytes<int64_t>(2 * phases() + 3 * taps) + Arena::bytes<T>(p_.groups * packed_size) +
        workers * (Arena::bytes<T>(staged_size) + Arena::bytes<T>(z_size))))};
    int64_t* const tables = arena.take<int64_t>(2 * phases() + 3 * taps);
    T* const packed = arena.take<T>(p_.groups * packed_size);
    T* const staged_all = arena.take<T>(workers * staged_size);
    T* const z_all = arena.take<T>(workers * z_size);

    int64_t *phase_first = tables, *phase_taps = tables + phases();
    int64_t *tap_phase = phase_taps + phases(), *tap_index = tap_phase + taps;
    int64_t* const shifts = tap_index + taps;
    make_tables(phase_first, phase_taps, tap_phase, tap_index, shifts);
    const PackedWeights<T> layout{packed,     p_.depth,  taps,     phase_first,
                                  phase_taps, tap_phase, tap_index};

    each_task(parallel_, p_.groups * sets(), [&](int, int64_t task) {
      PackedWeights<T> of_group = layout;
      of_group.data += task / sets() * packed_size;
      pack_set(weights_of(task / sets()), task % sets(), of_group);
    });

    each_task(threads, strips.count(p_.images), [&](int worker, int64_t task) {
      const int64_t part = task % strips.parts, group = task / strips.parts % p_.groups;
      const int64_t strip = task / strips.parts / p_.groups % strips.strips;
      const int64_t image = task / strips.parts / p_.groups / strips.strips;
      const int64_t from = strip * rows, past = min64(from + rows, p_.height);
      const int64_t begin = part * strips.sets_per_part;
      const int64_t end = min64(begin + strips.sets_per_part, sets());
      T *const staged = staged_all + worker * staged_size, *const z = z_all + worker * z_size;
      const Window window = window_of(from, past);
      stage_depth(image, group, window, staged);
      const int64_t z_block = (past - from) * p_.width * L;
      PackedWeights<T> of_group = layout;
      of_group.data += group * packed_size;
      for (int64_t set = begin; set < end; ++set)
        multiply_strip(window, staged, of_group, shifts, set, from, past,
                       z + (set - begin) * V * z_block, z_block);
      finish_sets(z, image, group, begin, end, from * p_.width, (past - from) * p_.width);
    });
  }

  // Which phase each tap belongs to, and where its source pixels are staged.
  void make_tables(int64_t* phase_first, int64_t* phase_taps, int64_t* tap_phase,
                   int64_t* tap_index, int64_t* shifts) const {
    int64_t found = 0;
    for (int64_t py = 0; py < p_.vertical.phases; ++py) {
      for (int64_t px = 0; px < p_.horizontal.phases; ++px) {
        const int64_t phase = py * p_.horizontal.phases + px;
        phase_first[phase] = found;
        for (int64_t r = p_.vertical.first[py]; r < p_.vertical.first[py + 1]; ++r) {
          for (int64_t s = p_.horizontal.first[px]; s < p_.horizontal.first[px + 1]; ++s, ++found) {
            const int64_t tap = p_.vertical.tap[r] * p_.horizontal.taps + p_.horizontal.tap[s];
            tap_phase[tap] = phase;
            tap_index[tap] = found - phase_first[phase];
            shifts[found] = (p_.vertical.offset[r] * window_.row_pitch() +
                             window_.column(p_.horizontal.offset[s] - window_.left)) *
                            L;
          }
        }
        phase_taps[phase] = found - phase_first[phase];
      }
    }
  }

  void multiply_strip(const Window& window, const T* staged, const PackedWeights<T>& weights,
                      const int64_t* shifts, int64_t set, int64_t from, int64_t past, T* z,
                      int64_t z_block) const {
    for (int64_t phase = 0; phase < phases(); ++phase) {
      const int64_t py = phase / p_.horizontal.phases, px = phase % p_.horizontal.phases;
      const Sum sum{p_.depth, window.block<T>(), shifts + weights.phase_first[phase],
                    weights.phase_taps[phase]};
      const int64_t pixels = p_.horizontal.pixels(px, p_.width);
      if (pixels <= 0) continue;
      for (int64_t i = p_.vertical.pixels(py, from); i < p_.vertical.pixels(py, past); ++i) {
        const T* const x = staged + (i * p_.vertical.step - window.top) * window.row_pitch() * L;
        const int64_t target = (py + i * p_.vertical.phases - from) * p_.width + px;
        multiply(sum, x, pixels, weights.phase(set, phase), vectors(set), z + target * L,
                 p_.horizontal.phases * L, z_block);
      }
    }
  }

  void run_winograd() {
    const Parallel threads = safe();
    const int64_t across = ceil_div(p_.width, 2);
    // Whole images, or rows of one, that have about unit_tiles tiles.
    const int64_t all_down = ceil_div(p_.height, 2);
    int64_t down = min64(all_down, ceil_div(unit_tiles, across));
    down = ceil_div(all_down, ceil_div(all_down, down));
    int64_t together = down < all_down ? 1 : min64(p_.images, ceil_div(unit_tiles, across * down));
    together = min64(together, ceil_div(p_.images, threads.threads));
    const int64_t rows = 2 * down, tiles = together * down * across;
    const int64_t batches = ceil_div(p_.images, together);
    const Strips strips(batches, p_.height, rows, p_.groups, sets(), threads.threads);

    const int64_t staged_size = (rows + 2) * window_.row_pitch() * L;
    const int64_t source_size = tile_elements * blocks() * tiles * L;
    const int64_t product_size = tile_elements * V * tiles * L;
    const int64_t z_size = rows * p_.width * L;
    const int64_t workers = min64(threads.threads, strips.count(batches));
    const int64_t filter_stride = sets() * p_.depth * set_lanes<T>;
    const int64_t filters_size = tile_elements * filter_stride;
    Arena arena{static_cast<char*>(
        workspace(Arena::bytes<T>(p_.groups * filters_size) +
                  Arena::bytes<T>(workers * (staged_size + source_size + product_size + z_size))))};
    T* const filters = arena.take<T>(p_.groups * filters_size);
    T* const scratch = arena.take<T>(workers * (staged_size + source_size + product_size + z_size));

    each_task(parallel_, p_.groups * sets(), [&](int, int64_t task) {
      transform_set(weights_of(task / sets()), task % sets(), p_.transposed,
                    filters + task / sets() * filters_size, filter_stride);
    });

    each_task(threads, strips.count(batches), [&](int worker, int64_t task) {
      const int64_t part = task % strips.parts, group = task / strips.parts % p_.groups;
      const int64_t strip = task / strips.parts / p_.groups % strips.strips;
      const int64_t batch = task / strips.parts / p_.groups / strips.strips;
      const int64_t from = strip * rows, past = min64(from + rows, p_.height);
      const int64_t first = batch * together, last = min64(first + together, p_.images);
      const int64_t image_tiles = ceil_div(past - from, 2) * across;
      const int64_t here = (last - first) * image_tiles;
      T* const staged = scratch + worker * (staged_size + source_size + product_size + z_size);
      T* const source = staged + staged_size;
      T* const product = source + source_size;
      T* const z = product + product_size;

      const Window window = window_of(from, past);
      for (int64_t image = first; image < last; ++image) {
        for (int64_t b = 0; b < blocks(); ++b) {
          stage(p_.source, image, group * p_.depth + b * L,
                static_cast<int>(min64(L, p_.depth - b * L)), p_.source_height, p_.source_width,
                window, staged);
          transform_tiles(staged, window.row_pitch(), ceil_div(past - from, 2), across,
                          source + (b * here + (image - first) * image_tiles) * L,
                          blocks() * here * L);
        }
      }
      const int64_t no_shift = 0;
      const Sum sum{p_.depth, here * L, &no_shift, 1};
      const int64_t end = min64((part + 1) * strips.sets_per_part, sets());
      for (int64_t set = part * strips.sets_per_part; set < end; ++set) {
        for (int e = 0; e < tile_elements; ++e)
          multiply(
              sum, source + e * blocks() * here * L, here,
              filters + group * filters_size + e * filter_stride + set * p_.depth * set_lanes<T>,
              vectors(set), product + e * V * here * L, L, here * L);
        for (int v = 0; v < vectors(set); ++v) {
          const int64_t k = set * set_lanes<T> + v * L;
          for (int64_t image = first; image < last; ++image) {
            untransform_tiles(product + (v * here + (image - first) * image_tiles) * L,
                              V * here * L, past - from, p_.width, z);
            finish(p_.to, z, image, group * p_.targets + k,
                   static_cast<int>(min64(L, p_.targets - k)), from * p_.width,
                   (past - from) * p_.width);
          }
        }
      }
    });
  }

  // One channel a group: lanes are groups.
  void run_depthwise() {
    const int64_t taps = p_.vertical.taps * p_.horizontal.taps;
    const int64_t rows = strip_rows(1, 1), group_blocks = ceil_div(p_.groups, L);
    const int64_t strips = ceil_div(p_.height, rows);
    const int64_t staged_size = highest_window(rows) * window_.row_pitch() * L;
    const int64_t z_size = rows * p_.width * L;
    Parallel threads = parallel_;
    if (p_.to.mask != nullptr && p_.to.layout.channels_last && L % 8 != 0) threads.threads = 1;
    const int64_t workers = min64(threads.threads, p_.images * strips * group_blocks);
    Arena arena{static_cast<char*>(workspace(
        Arena::bytes<int64_t>(2 * phases() + 3 * taps) + Arena::bytes<T>(group_blocks * taps * L) +
        Arena::bytes<T>(workers * staged_size) + Arena::bytes<T>(workers * z_size)))};
    int64_t* const tables = arena.take<int64_t>(2 * phases() + 3 * taps);
    T* const packed = arena.take<T>(group_blocks * taps * L);
    T* const staged_all = arena.take<T>(workers * staged_size);
    T* const z_all = arena.take<T>(workers * z_size);
    int64_t *phase_first = tables, *phase_taps = tables + phases();
    int64_t *tap_phase = phase_taps + phases(), *tap_index = tap_phase + taps;
    int64_t* const shifts = tap_index + taps;
    make_tables(phase_first, phase_taps, tap_phase, tap_index, shifts);
    const Weights<S> weights{p_.weights.data, p_.groups, 1, taps, taps, taps};
    for (int64_t b = 0; b < group_blocks; ++b)
      each_weight_vector<T>(weights, b * L, [&](int64_t, int64_t tap, Vector<T> value) {
        const int64_t place = phase_first[tap_phase[tap]] + tap_index[tap];
        store(packed + (b * taps + place) * L, value);
      });

    each_task(threads, p_.images * strips * group_blocks, [&](int worker, int64_t task) {
      const int64_t b = task % group_blocks, strip = task / group_blocks % strips;
      const int64_t image = task / group_blocks / strips;
      const int64_t from = strip * rows, past = min64(from + rows, p_.height);
      const int count = static_cast<int>(min64(L, p_.groups - b * L));
      T *const staged = staged_all + worker * staged_size, *const z = z_all + worker * z_size;
      const Window window = window_of(from, past);
      stage(p_.source, image, b * L, count, p_.source_height, p_.source_width, window, staged);
      for (int64_t phase = 0; phase < phases(); ++phase) {
        const int64_t py = phase / p_.horizontal.phases, px = phase % p_.horizontal.phases;
        const T* const w = packed + (b * taps + phase_first[phase]) * L;
        const int64_t pixels = p_.horizontal.pixels(px, p_.width);
        for (int64_t i = p_.vertical.pixels(py, from); i < p_.vertical.pixels(py, past); ++i) {
          const T* const x = staged + (i * p_.vertical.step - window.top) * window.row_pitch() * L;
          T* const row = z + ((py + i * p_.vertical.phases - from) * p_.width + px) * L;
          filter_row(x, w, shifts + phase_first[phase], phase_taps[phase], pixels, row,
                     p_.horizontal.phases * L);
        }
      }
      finish(p_.to, z, image, b * L, count, from * p_.width, (past - from) * p_.width);
    });
  }

  // z[pixel] = sum of x[pixel + shift] * w[tap], lane by lane.
  static void filter_row(const T* x, const T* w, const int64_t* shifts, int64_t taps,
                         int64_t pixels, T* z, int64_t z_row) {
    constexpr int together = 4;
    int64_t p = 0;
    for (; p + together <= pixels; p += together) {
      Vector<T> sum[together] = {};
      for (int64_t t = 0; t < taps; ++t) {
        const Vector<T> weight = load(w + t * L);
#pragma GCC unroll 4
        for (int i = 0; i < together; ++i) sum[i] += load(x + shifts[t] + (p + i) * L) * weight;
      }
#pragma GCC unroll 4
      for (int i = 0; i < together; ++i) store(z + (p + i) * z_row, sum[i]);
    }
    for (; p < pixels; ++p) {
      Vector<T> sum{};
      for (int64_t t = 0; t < taps; ++t) sum += load(x + shifts[t] + p * L) * load(w + t * L);
      store(z + p * z_row, sum);
    }
  }

  const Correlation<S>& p_;
  const Parallel parallel_;
  Window window_;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "conv2d/winograd_correlate.h"

// A correlation by direct sums, or by the way that suits its shape.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// What a worker's staged source and results may take together, so that they stay in its L2.
constexpr int64_t unit_bytes = 384 << 10;

template <class S>
class Correlator {
 public:
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>, V = tile_vectors<T>;

  Correlator(const Correlation<S>& problem, const Parallel& parallel)
      : p_(problem), parallel_(parallel) {
    const Reach across = reach(p_.horizontal, 0, p_.width);
    window_ = {0, across.begin, 0, across.end - across.begin, p_.horizontal.step};
  }

  void run() {
    if (p_.images == 0) return;
    if (p_.groups > 1 && p_.depth == 1 && p_.targets == 1)
      run_depthwise();
    else if (p_.winograd == 2)
      WinogradCorrelator<S, 2>(p_, parallel_).run();
    else if (p_.winograd == 4)
      WinogradCorrelator<S, 4>(p_, parallel_).run();
    else
      run_direct();
  }

 private:
  int64_t phases() const { return p_.vertical.phases * p_.horizontal.phases; }

  // The rows of the source that targets [from, past) reach.
  Window window_of(int64_t from, int64_t past) const {
    Window window = window_;
    const Reach down = reach(p_.vertical, from, past);
    window.top = down.begin;
    window.rows = down.end - down.begin;
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

  void run_direct() {
    const int64_t taps = p_.vertical.taps * p_.horizontal.taps;
    const Parallel threads = p_.writers(parallel_);
    const int64_t rows = strip_rows(p_.blocks(), p_.sets() * V);
    const Strips strips(p_.images, p_.height, rows, p_.groups, p_.sets(), threads.threads);
    const int64_t staged_size = p_.blocks() * highest_window(rows) * window_.row_pitch() * L;
    const int64_t z_size = strips.sets_per_part * V * rows * p_.width * L;
    const int64_t workers = min64(threads.threads, strips.count(p_.images));
    const int64_t packed_size = p_.sets() * p_.depth * taps * set_lanes<T>;

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

    each_task(parallel_, p_.groups * p_.sets(), [&](int, int64_t task) {
      PackedWeights<T> of_group = layout;
      of_group.data += task / p_.sets() * packed_size;
      pack_set(p_.weights_of(task / p_.sets()), task % p_.sets(), of_group);
    });

    each_task(threads, strips.count(p_.images), [&](int worker, int64_t task) {
      const int64_t part = task % strips.parts, group = task / strips.parts % p_.groups;
      const int64_t strip = task / strips.parts / p_.groups % strips.strips;
      const int64_t image = task / strips.parts / p_.groups / strips.strips;
      const int64_t from = strip * rows, past = min64(from + rows, p_.height);
      const int64_t begin = part * strips.sets_per_part;
      const int64_t end = min64(begin + strips.sets_per_part, p_.sets());
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
        multiply(sum, x, pixels, weights.phase(set, phase), p_.vectors(set), z + target * L,
                 p_.horizontal.phases * L, z_block);
      }
    }
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

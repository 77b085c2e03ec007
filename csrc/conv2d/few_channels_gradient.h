#pragma once

#include "conv2d/planes.h"

// The gradients of weight and bias of first layers, either layout: for every element of a filter
// dZ, staged in blocks (stage.h), times its pixel, read from the planes. The output's rows are cut
// into parts that follow from the shape; each is summed alone, and a second stage adds them up in
// order, so that no sum depends on the number of threads.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Vectors of output channels that are summed together, and the elements of a filter with so many.
constexpr int gradient_vectors = 4;
#if defined(__AVX512F__)
constexpr int gradient_taps[gradient_vectors + 1] = {0, 8, 8, 8, 6};
#else
constexpr int gradient_taps[gradient_vectors + 1] = {0, 6, 6, 4, 3};
#endif

// Pixels of a run of sums: `rows` rows of `pixels` each.
template <class T>
struct PixelRun {
  int64_t rows, pixels;
  int64_t x_row, x_step;  // from row to row and pixel to pixel in the planes
  const T* dz;
  int64_t dz_row, dz_block;  // from row to row and vector to vector of channels in dZ
};

// sums[i][v] += x[i][pixel] * dz[v][pixel].
template <class T, int TAPS, int VECTORS>
__attribute__((noinline)) void sum_taps(const T* const* x, const PixelRun<T>& run, T* sums) {
  constexpr int L = lanes<T>;
  Vector<T> total[TAPS][VECTORS] = {};
  for (int64_t y = 0; y < run.rows; ++y) {
    const T* pixels[TAPS];
#pragma GCC unroll 8
    for (int i = 0; i < TAPS; ++i) pixels[i] = x[i] + y * run.x_row;
    const T* dz = run.dz + y * run.dz_row;
    const int64_t past = run.pixels * run.x_step;
    for (int64_t p = 0; p < past; p += run.x_step, dz += L) {
      Vector<T> column[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) column[v] = load(dz + v * run.dz_block);
#pragma GCC unroll 8
      for (int i = 0; i < TAPS; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) total[i][v] += pixels[i][p] * column[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < TAPS; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      T* const target = sums + (i * gradient_vectors + v) * L;
      store(target, load(target) + total[i][v]);
    }
  }
}

template <class T>
using SumTaps = void (*)(const T* const*, const PixelRun<T>&, T*);

template <class T, int VECTORS = gradient_vectors>
SumTaps<T> find_sum_taps(int vectors) {
  if constexpr (VECTORS > 1) {
    if (vectors < VECTORS) return find_sum_taps<T, VECTORS - 1>(vectors);
  }
  return &sum_taps<T, gradient_taps[VECTORS], VECTORS>;
}

template <class S>
class FewChannelsGradient {
 public:
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>, V = gradient_vectors, set_outs = V * L;

  FewChannelsGradient(const Conv2dShape& shape, const Source<S>& gradient, const S* input,
                      T* grad_weight, S* grad_bias, const Parallel& parallel)
      : shape_(shape),
        gradient_(gradient),
        grad_weight_(grad_weight),
        grad_bias_(grad_bias),
        parallel_(parallel),
        depth_(shape.channels * shape.kernel[0] * shape.kernel[1]),
        sets_(ceil_div(shape.outs, set_outs)),
        sums_size_((depth_ + most_taps) * set_outs),
        planes_(shape, input,
                plane_rows<T>(shape, shape.out_width * set_outs * sizeof(T), 256 << 10), 1) {}

  void run() {
    const int64_t strips = shape_.images * strips_of_image();
    const int64_t fit = parts_bytes / (sets_ * sums_size_ * static_cast<int64_t>(sizeof(T)));
    const int64_t wanted = min64(strips, min64(most_parts, fit)), parts = wanted < 1 ? 1 : wanted;
    const int64_t workers = min64(parallel_.threads, parts * sets_);
    const int64_t dz_size = planes_.rows * shape_.out_width * set_outs;
    const int64_t own_bytes = Arena::bytes<T>(planes_.size()) + Arena::bytes<T>(dz_size);
    Arena arena{static_cast<char*>(workspace(Arena::bytes<int64_t>(depth_) +
                                             Arena::bytes<T>(parts * sets_ * sums_size_) +
                                             workers * own_bytes))};
    offsets_ = arena.take<int64_t>(depth_);
    T* const sums = arena.take<T>(parts * sets_ * sums_size_);
    char* const own = arena.take<char>(workers * own_bytes);
    planes_.make_offsets(offsets_);
    each_task(parallel_, parts * sets_, [&](int worker, int64_t task) {
      Arena mine{own + worker * own_bytes};
      T* const staged = mine.take<T>(planes_.size());
      T* const dz = mine.take<T>(dz_size);
      const int64_t part = task / sets_;
      sum_strips(part * strips / parts, (part + 1) * strips / parts, task % sets_, staged, dz,
                 sums + task * sums_size_);
    });
    each_task(parallel_, sets_, [&](int, int64_t set) { store_set(sums, parts, set); });
  }

 private:
  static constexpr int most_taps = 8;
  static constexpr int64_t most_parts = 16, parts_bytes = 4 << 20;
  // Sums stay in registers for about so many pixels, since sums of sums have smaller rounding
  // errors.
  static constexpr int64_t run_pixels = 256;

  int64_t strips_of_image() const { return ceil_div(shape_.out_height, planes_.rows); }

  // The sums of a set of output channels over strips [begin, end): a row of set_outs for each
  // element of a filter and for those past the last, which nobody reads, then that of the bias.
  void sum_strips(int64_t begin, int64_t end, int64_t set, T* staged, T* dz, T* sums) const {
    for (int64_t i = 0; i < sums_size_; i += L) store(sums + i, Vector<T>{});
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t image = strip / strips_of_image();
      const int64_t from = strip % strips_of_image() * planes_.rows;
      const int64_t past = min64(from + planes_.rows, shape_.out_height);
      planes_.stage(image, from, past, staged);
      sum_strip(image, from, past - from, set, staged, dz, sums);
    }
  }

  void sum_strip(int64_t image, int64_t from, int64_t rows, int64_t set, const T* staged, T* dz,
                 T* sums) const {
    const int64_t width = shape_.out_width, block = rows * width * L;
    const int vectors = static_cast<int>(min64(V, ceil_div(shape_.outs - set * set_outs, L)));
    T* const bias = sums + sums_size_ - set_outs;
    for (int v = 0; v < vectors; ++v) {
      const int64_t out = set * set_outs + v * L;
      T* const target = dz + v * block;
      stage(gradient_, image, out, static_cast<int>(min64(L, shape_.outs - out)), shape_.out_height,
            width, {from, 0, rows, width, 1}, target);
      Vector<T> sum = load(bias + v * L);
      for (int64_t y = 0; y < rows; ++y) sum += sum_pixels(target + y * width * L, width);
      store(bias + v * L, sum);
    }
    const int taps = gradient_taps[vectors];
    const int64_t run_rows = width < run_pixels ? run_pixels / width : 1;
    for (int64_t first = 0; first < depth_; first += taps) {
      for (int64_t y = 0; y < rows; y += run_rows) {
        for (int64_t x = 0; x < width; x += run_pixels) {
          const PixelRun<T> run{min64(run_rows, rows - y),
                                min64(run_pixels, width - x),
                                planes_.row_pitch(),
                                shape_.stride[1],
                                dz + (y * width + x) * L,
                                width * L,
                                block};
          const T* pixels[most_taps];
          for (int i = 0; i < taps; ++i)
            pixels[i] = staged + y * planes_.row_pitch() + x * shape_.stride[1] +
                        offsets_[min64(first + i, depth_ - 1)];
          find_sum_taps<T>(vectors)(pixels, run, sums + first * set_outs);
        }
      }
    }
  }

  // Adds up the parts of a set, in order, and takes them to the gradients.
  void store_set(T* all, int64_t parts, int64_t set) const {
    T* const sums = all + set * sums_size_;
    for (int64_t part = 1; part < parts; ++part) {
      const T* const other = sums + part * sets_ * sums_size_;
      for (int64_t i = 0; i < sums_size_; i += L) store(sums + i, load(sums + i) + load(other + i));
    }
    for (int v = 0; v < V; ++v) {
      const int64_t out = set * set_outs + v * L;
      const int count = static_cast<int>(min64(L, shape_.outs - out));
      if (count <= 0) return;
      if (grad_bias_ != nullptr)
        store(grad_bias_ + out, load(sums + sums_size_ - set_outs + v * L), count);
      for (int64_t first = 0; first < depth_; first += L) {
        const int valid = static_cast<int>(min64(L, depth_ - first));
        Vector<T> square[L] = {};
        for (int i = 0; i < valid; ++i) square[i] = load(sums + (first + i) * set_outs + v * L);
        transpose(square);
        for (int i = 0; i < count; ++i)
          store(grad_weight_ + (out + i) * depth_ + first, square[i], valid);
      }
    }
  }

  const Conv2dShape& shape_;
  const Source<S>& gradient_;
  T* const grad_weight_;
  S* const grad_bias_;
  const Parallel& parallel_;
  const int64_t depth_, sets_, sums_size_;
  const Planes<S> planes_;
  int64_t* offsets_ = nullptr;
};

template <class S>
void few_channels_grad_weight(const Conv2dShape& shape, const Source<S>& gradient, const S* input,
                              Accumulator<S>* grad_weight, S* grad_bias, const Parallel& parallel) {
  FewChannelsGradient<S>(shape, gradient, input, grad_weight, grad_bias, parallel).run();
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

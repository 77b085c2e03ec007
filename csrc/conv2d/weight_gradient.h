#pragma once

#include "conv2d/correlate.h"

// The gradients of weight and bias: sums over pixels of staged input times staged dZ. Segments
// (rows of an image) are staged a few at a time; every element of the gradient then belongs to one
// task, which adds the segments in order, so that no sum depends on the number of threads.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// What the segments staged at one time may take, for all threads together.
constexpr int64_t segments_bytes = 8 << 20;

template <class S>
class WeightGradient {
 public:
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>, V = tile_vectors<T>;

  WeightGradient(const Conv2dBackward& args, const Source<S>& gradient, const Parallel& parallel)
      : args_(args),
        shape_(args.shape),
        gradient_(gradient),
        input_{static_cast<const S*>(args.input),
               {shape_.channels, shape_.height * shape_.width, shape_.channels_last},
               Activation::none,
               0,
               nullptr,
               0},
        parallel_(parallel),
        depth_(shape_.channels / shape_.groups),
        targets_(shape_.outs / shape_.groups),
        taps_(shape_.kernel[0] * shape_.kernel[1]),
        grad_weight_(static_cast<T*>(args.grad_weight)) {}

  void run() {
    const bool weight = grad_weight_ != nullptr;
    depthwise_ = shape_.groups > 1 && depth_ == 1 && targets_ == 1;
    if (depthwise_) {  // One group whose lanes are the groups.
      blocks_ = target_blocks_ = ceil_div(shape_.groups, L);
      groups_ = 1;
    } else {
      blocks_ = ceil_div(depth_, L);
      target_blocks_ = ceil_div(targets_, set_lanes<T>) * V;
      groups_ = shape_.groups;
    }
    const int64_t column_reach = (shape_.kernel[1] - 1) * shape_.dilation[1] + 1;
    window_ = {0, -shape_.padding[1], 0, (shape_.out_width - 1) * shape_.stride[1] + column_reach,
               shape_.stride[1]};
    const int64_t input_row = weight ? groups_ * blocks_ * window_.row_pitch() * L : 0;
    const int64_t target_row = groups_ * target_blocks_ * shape_.out_width * L;
    const int64_t limit = segments_bytes / static_cast<int64_t>(sizeof(T));
    // A segment is a whole image where that fits, else as many rows as do.
    winograd_ = shape_.winograd != 0 && weight;
    rows_ = winograd_ ? round_up(shape_.out_height, 2) : shape_.out_height;
    const int64_t blocks_in_all = groups_ * (blocks_ + target_blocks_);
    const auto segment_size = [&] {
      tiles_ = rows_ / 2 * ceil_div(shape_.out_width, 2);
      return winograd_ ? blocks_in_all * gradient_elements * tiles_ * L
                       : window_rows(rows_) * input_row + rows_ * target_row;
    };
    while (rows_ > 2 && segment_size() > limit) rows_ = round_up(ceil_div(rows_, 2), 2);
    const int64_t strips = ceil_div(shape_.out_height, rows_);
    const int64_t size = segment_size();
    input_size_ = window_rows(rows_) * input_row;
    target_size_ = rows_ * target_row;
    const int64_t segments = shape_.images * strips;
    int64_t together = limit / (size + 1);
    together = together < 1 ? 1 : min64(together, segments);
    if (segments > 0) together = ceil_div(segments, ceil_div(segments, together));
    run_ = together * tiles_ * L;

    const int64_t sums_size = (winograd_ ? gradient_elements : taps_) * L * set_lanes<T>;
    const int64_t workers = parallel_.threads;
    if (winograd_) window_.columns = round_up(shape_.out_width, 2) + 2;
    scratch_size_ = winograd_ ? (rows_ + 2) * window_.row_pitch() * L : 0;
    Arena arena{static_cast<char*>(
        workspace(Arena::bytes<T>(together * size) + Arena::bytes<T>(workers * scratch_size_) +
                  Arena::bytes<T>((together + 1) * groups_ * target_blocks_ * L) +
                  Arena::bytes<T>(workers * sums_size)))};
    inputs_ = arena.take<T>(together * size);
    targets_staged_ = inputs_ + (winograd_ ? groups_ * blocks_ * gradient_elements * run_
                                           : together * input_size_);
    scratch_ = arena.take<T>(workers * scratch_size_);
    T* const bias_sums = arena.take<T>((together + 1) * groups_ * target_blocks_ * L);
    T* const sums = arena.take<T>(workers * sums_size);
    const int64_t bias_size = groups_ * target_blocks_ * L;
    for (int64_t i = 0; i < bias_size; ++i) bias_sums[i] = 0;

    for (int64_t first = 0; first < segments; first += together) {
      const int64_t here = min64(together, segments - first);
      stage_segments(first, here, strips, weight, bias_sums + bias_size);
      for (int64_t segment = 0; segment < here; ++segment) {
        const T* const one = bias_sums + (segment + 1) * bias_size;
        for (int64_t i = 0; i < bias_size; ++i) bias_sums[i] += one[i];
      }
      if (!weight) continue;
      const auto rows_of = [&](int64_t segment) {
        const int64_t from = (first + segment) % strips * rows_;
        return min64(rows_, shape_.out_height - from);
      };
      if (winograd_)
        sum_tiles(here, first > 0, sums, sums_size);
      else if (depthwise_)
        sum_depthwise(here, rows_of, first > 0);
      else
        sum_segments(here, rows_of, first > 0, sums, sums_size);
    }
    if (segments == 0 && weight)
      for (int64_t i = 0; i < shape_.outs * depth_ * taps_; ++i) grad_weight_[i] = 0;
    if (args_.grad_bias != nullptr) store_bias(bias_sums);
  }

 private:
  int64_t window_rows(int64_t rows) const {
    return (rows - 1) * shape_.stride[0] + (shape_.kernel[0] - 1) * shape_.dilation[0] + 1;
  }
  int64_t channel(int64_t group, int64_t block) const {
    return depthwise_ ? block * L : group * depth_ + block * L;
  }

  // Stages segments [first, first + count); each block of dZ leaves its sum over the pixels.
  void stage_segments(int64_t first, int64_t count, int64_t strips, bool weight, T* bias_sums) {
    const int64_t input_blocks = weight ? groups_ * blocks_ : 0;
    const int64_t per_segment = input_blocks + groups_ * target_blocks_;
    each_task(parallel_, count * per_segment, [&](int worker, int64_t task) {
      T* const scratch = scratch_ + worker * scratch_size_;
      const int64_t segment = task / per_segment, block = task % per_segment - input_blocks;
      const int64_t image = (first + segment) / strips, from = (first + segment) % strips * rows_;
      const int64_t rows = min64(rows_, shape_.out_height - from);
      if (block < 0) {
        const int64_t group = (block + input_blocks) / blocks_,
                      b = (block + input_blocks) % blocks_;
        const int64_t left = (depthwise_ ? shape_.groups : depth_) - b * L;
        Window window = window_;
        window.top = from * shape_.stride[0] - shape_.padding[0];
        window.rows = window_rows(rows);
        if (winograd_) {
          window.rows = rows_ + 2;
          window.columns = window_.columns;
        }
        T* const staged = winograd_ ? scratch : input_block(segment, group, b);
        stage(input_, image, channel(group, b), static_cast<int>(min64(L, left)), shape_.height,
              shape_.width, window, staged);
        if (winograd_)
          transform_tiles<2>(staged, window.row_pitch(), rows_ / 2, across(),
                             input_tiles(group, b) + segment * tiles_ * L, run_);
        return;
      }
      const int64_t group = block / target_blocks_, b = block % target_blocks_;
      const int64_t left = (depthwise_ ? shape_.groups : targets_) - b * L;
      T* const staged = winograd_ ? scratch : target_block(segment, group, b);
      // Winograd's tiles may reach past the edges, where dZ is staged as zeros.
      const Window window{from, 0, winograd_ ? rows_ : rows,
                          winograd_ ? 2 * across() : shape_.out_width, 1};
      Vector<T> sum{};
      if (left > 0) {
        const int64_t k = depthwise_ ? b * L : group * targets_ + b * L;
        stage(gradient_, image, k, static_cast<int>(min64(L, left)), shape_.out_height,
              shape_.out_width, window, staged);
        for (int64_t y = 0; y < rows; ++y) {
          const T* const row = staged + y * window.columns * L;
          Vector<T> part[4] = {};
          for (int64_t x = 0; x < shape_.out_width; ++x) part[x % 4] += load(row + x * L);
          sum += (part[0] + part[1]) + (part[2] + part[3]);
        }
        if (winograd_)
          transform_gradient(staged, window.columns, rows_ / 2, across(),
                             target_tiles(group, b) + segment * tiles_ * L, run_);
      }
      store(bias_sums + (segment * groups_ * target_blocks_ + block) * L, sum);
    });
  }

  T* input_block(int64_t segment, int64_t group, int64_t block) const {
    return inputs_ + segment * input_size_ +
           (group * blocks_ + block) * window_rows(rows_) * window_.row_pitch() * L;
  }
  T* target_block(int64_t segment, int64_t group, int64_t block) const {
    return targets_staged_ + segment * target_size_ +
           (group * target_blocks_ + block) * rows_ * shape_.out_width * L;
  }

  int64_t across() const { return ceil_div(shape_.out_width, 2); }
  // The transformed tiles of a block: element by element, all segments side by side in each.
  T* input_tiles(int64_t group, int64_t block) const {
    return inputs_ + (group * blocks_ + block) * gradient_elements * run_;
  }
  T* target_tiles(int64_t group, int64_t block) const {
    return targets_staged_ + (group * target_blocks_ + block) * gradient_elements * run_;
  }

  // Winograd's F(3x3, 2x2): the gradient of the transformed filters, transformed back.
  void sum_tiles(int64_t count, bool add, T* sums_all, int64_t sums_size) {
    const int64_t sets = target_blocks_ / V;
    each_task(parallel_, groups_ * sets * blocks_, [&](int worker, int64_t task) {
      const int64_t b = task % blocks_, set = task / blocks_ % sets, group = task / blocks_ / sets;
      const int channels = static_cast<int>(min64(L, depth_ - b * L));
      const int vectors = static_cast<int>(min64(V, ceil_div(targets_ - set * set_lanes<T>, L)));
      T* const sums = sums_all + worker * sums_size;
      const int64_t sums_row = gradient_elements * set_lanes<T>;
      for (int64_t i = 0; i < L * sums_row; i += L) store(sums + i, Vector<T>{});
      for (int e = 0; e < gradient_elements; ++e)
        accumulate(channels, vectors, input_tiles(group, b) + e * run_, 0,
                   target_tiles(group, set * V) + e * run_, 0, gradient_elements * run_, 1,
                   count * tiles_, sums + e * set_lanes<T>, sums_row);
      for (int c = 0; c < channels; ++c) {
        for (int v = 0; v < vectors; ++v)
          untransform_filter(sums + c * sums_row + v * L, sums + c * taps_ * set_lanes<T> + v * L,
                             set_lanes<T>);
      }
      for (int v = 0; v < vectors; ++v)
        store_sums(sums + v * L, group * targets_ + set * set_lanes<T> + v * L,
                   static_cast<int>(min64(L, targets_ - set * set_lanes<T> - v * L)), b * L,
                   channels, 0, taps_, add);
    });
  }

  // Staged offset of the input pixel that tap (r, s) sees at the first output pixel.
  int64_t shift(int64_t r, int64_t s) const {
    return (r * shape_.dilation[0] * window_.row_pitch() + window_.column(s * shape_.dilation[1])) *
           L;
  }

  template <class RowsOf>
  void sum_segments(int64_t count, const RowsOf& rows_of, bool add, T* sums_all,
                    int64_t sums_size) {
    const int64_t sets = target_blocks_ / V;
    // Few tasks are cut further, one row of the kernel each.
    const int64_t parts = groups_ * sets * blocks_ < 8 ? shape_.kernel[0] : 1;
    const int64_t part_rows = shape_.kernel[0] / parts;
    each_task(parallel_, groups_ * sets * blocks_ * parts, [&](int worker, int64_t task) {
      const int64_t part = task % parts, b = task / parts % blocks_;
      const int64_t set = task / parts / blocks_ % sets, group = task / parts / blocks_ / sets;
      const int channels = static_cast<int>(min64(L, depth_ - b * L));
      const int vectors = static_cast<int>(min64(V, ceil_div(targets_ - set * set_lanes<T>, L)));
      T* const sums = sums_all + worker * sums_size;
      const int64_t sums_row = taps_ * set_lanes<T>;
      for (int64_t i = 0; i < L * sums_row; i += L) store(sums + i, Vector<T>{});
      for (int64_t segment = 0; segment < count; ++segment) {
        const T* const x = input_block(segment, group, b);
        const T* const dz = target_block(segment, group, set * V);
        for (int64_t r = part * part_rows; r < (part + 1) * part_rows; ++r) {
          for (int64_t s = 0; s < shape_.kernel[1]; ++s)
            accumulate(channels, vectors, x + shift(r, s),
                       shape_.stride[0] * window_.row_pitch() * L, dz, shape_.out_width * L,
                       rows_ * shape_.out_width * L, rows_of(segment), shape_.out_width,
                       sums + (r * shape_.kernel[1] + s) * set_lanes<T>, sums_row);
        }
      }
      const int64_t taps = part_rows * shape_.kernel[1];
      for (int v = 0; v < vectors; ++v)
        store_sums(sums + v * L, group * targets_ + set * set_lanes<T> + v * L,
                   static_cast<int>(min64(L, targets_ - set * set_lanes<T> - v * L)), b * L,
                   channels, part * taps, taps, add);
    });
  }

  // sums[channel][tap][lane] of `count` lanes to (or onto) grad_weight, taps [first, first + taps).
  void store_sums(const T* sums, int64_t out, int count, int64_t channel, int channels,
                  int64_t first, int64_t taps, bool add) const {
    T* const target = grad_weight_ + (out * depth_ + channel) * taps_;
    const int64_t row = depth_ * taps_;
    // With all taps, the channels of one output channel are one run of memory.
    const int64_t runs = taps == taps_ ? 1 : channels,
                  length = taps == taps_ ? channels * taps_ : taps;
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t begin = run * taps_ + first;
      for (int64_t q = 0; q < length; q += L) {
        const int valid = static_cast<int>(min64(L, length - q));
        Vector<T> square[L] = {};
        for (int i = 0; i < valid; ++i) square[i] = load(sums + (begin + q + i) * set_lanes<T>);
        transpose(square);
        for (int lane = 0; lane < count; ++lane) {
          T* const place = target + lane * row + begin + q;
          if (add) square[lane] += load(place, valid);
          store(place, square[lane], valid);
        }
      }
    }
  }

  template <class RowsOf>
  void sum_depthwise(int64_t count, const RowsOf& rows_of, bool add) {
    each_task(parallel_, blocks_, [&](int, int64_t b) {
      const int64_t lanes_here = min64(L, shape_.groups - b * L);
      for (int64_t tap = 0; tap < taps_; ++tap) {
        Vector<T> sum{};
        for (int64_t segment = 0; segment < count; ++segment) {
          const T* const x =
              input_block(segment, 0, b) + shift(tap / shape_.kernel[1], tap % shape_.kernel[1]);
          const T* const dz = target_block(segment, 0, b);
          for (int64_t y = 0; y < rows_of(segment); ++y) {
            const T* const x_row = x + y * shape_.stride[0] * window_.row_pitch() * L;
            const T* const dz_row = dz + y * shape_.out_width * L;
            Vector<T> part[4] = {};
            for (int64_t p = 0; p < shape_.out_width; ++p)
              part[p % 4] += load(x_row + p * L) * load(dz_row + p * L);
            sum += (part[0] + part[1]) + (part[2] + part[3]);
          }
        }
        for (int64_t lane = 0; lane < lanes_here; ++lane) {
          T& place = grad_weight_[(b * L + lane) * taps_ + tap];
          place = (add ? place : 0) + sum[lane];
        }
      }
    });
  }

  void store_bias(const T* sums) const {
    S* const grad_bias = static_cast<S*>(args_.grad_bias);
    const int64_t of_group = depthwise_ ? shape_.groups : targets_;
    for (int64_t group = 0; group < groups_; ++group) {
      for (int64_t k = 0; k < of_group; k += L)
        store(grad_bias + group * of_group + k, load(sums + (group * target_blocks_ * L + k)),
              static_cast<int>(min64(L, of_group - k)));
    }
  }

  const Conv2dBackward& args_;
  const Conv2dShape& shape_;
  const Source<S>& gradient_;
  const Source<S> input_;
  const Parallel& parallel_;
  const int64_t depth_, targets_, taps_;
  T* const grad_weight_;
  bool depthwise_ = false, winograd_ = false;
  int64_t tiles_ = 0, run_ = 0, scratch_size_ = 0;
  T* scratch_ = nullptr;
  int64_t groups_ = 0, blocks_ = 0, target_blocks_ = 0, rows_ = 0, input_size_ = 0,
          target_size_ = 0;
  Window window_{};
  T *inputs_ = nullptr, *targets_staged_ = nullptr;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

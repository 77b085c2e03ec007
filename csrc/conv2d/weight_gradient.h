#pragma once

#include "conv2d/segments.h"

// The gradients of weight and bias: sums over pixels of staged input times staged dZ. Segments are
// staged a few at a time; every element of the gradient then belongs to one task, which adds the
// segments in order, so that no sum depends on the number of threads.

namespace lamina {
namespace LAMINA_ISA {
namespace {

template <class S>
class WeightGradient {
 public:
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>, V = tile_vectors<T>;

  WeightGradient(const Conv2dBackward& args, const Source<S>& gradient, const Source<S>& input,
                 const Parallel& parallel)
      : shape_(args.shape),
        gradient_(gradient),
        input_(input),
        parallel_(parallel),
        taps_(shape_.kernel[0] * shape_.kernel[1]),
        grad_weight_(static_cast<T*>(args.grad_weight)),
        grad_bias_(static_cast<S*>(args.grad_bias)),
        s_(shape_, grad_weight_ != nullptr) {}

  void run() {
    const int64_t workers = parallel_.threads;
    const int64_t sums_row = s_.winograd ? gradient_elements : taps_;
    sums_size_ = sums_row * L * set_lanes<T>;
    scratch_size_ = s_.winograd ? (s_.rows + 2) * s_.window.row_pitch() * L : 0;
    const int64_t bias_size = s_.groups * s_.target_blocks * L;
    Arena arena{static_cast<char*>(workspace(
        Arena::bytes<T>(s_.together * s_.size) + Arena::bytes<T>(workers * scratch_size_) +
        Arena::bytes<T>((s_.together + 1) * bias_size) + Arena::bytes<T>(workers * sums_size_)))};
    s_.place(arena.take<T>(s_.together * s_.size));
    scratch_ = arena.take<T>(workers * scratch_size_);
    T* const bias_sums = arena.take<T>((s_.together + 1) * bias_size);
    sums_ = arena.take<T>(workers * sums_size_);
    for (int64_t i = 0; i < bias_size; ++i) bias_sums[i] = 0;

    for (int64_t first = 0; first < s_.count; first += s_.together) {
      const int64_t here = min64(s_.together, s_.count - first);
      stage_segments(first, here, bias_sums + bias_size);
      for (int64_t segment = 0; segment < here; ++segment) {
        const T* const one = bias_sums + (segment + 1) * bias_size;
        for (int64_t i = 0; i < bias_size; ++i) bias_sums[i] += one[i];
      }
      if (grad_weight_ == nullptr) continue;
      if (s_.winograd)
        sum_tiles(here, first > 0);
      else if (s_.depthwise)
        sum_depthwise(first, here);
      else
        sum_segments(first, here);
    }
    if (s_.count == 0 && grad_weight_ != nullptr)
      for (int64_t i = 0; i < shape_.outs * s_.depth * taps_; ++i) grad_weight_[i] = 0;
    if (grad_bias_ != nullptr) store_bias(bias_sums);
  }

 private:
  // Stages segments [first, first + count); each block of dZ leaves its sum over the pixels.
  void stage_segments(int64_t first, int64_t count, T* bias_sums) {
    const int64_t input_blocks = grad_weight_ != nullptr ? s_.groups * s_.blocks : 0;
    const int64_t target_blocks = s_.groups * s_.target_blocks;
    each_task(parallel_, count * (input_blocks + target_blocks), [&](int worker, int64_t task) {
      T* const scratch = scratch_ + worker * scratch_size_;
      const int64_t segment = task / (input_blocks + target_blocks);
      const int64_t block = task % (input_blocks + target_blocks);
      if (block < input_blocks)
        stage_input(first + segment, segment, block / s_.blocks, block % s_.blocks, scratch);
      else
        store(bias_sums + (segment * target_blocks + block - input_blocks) * L,
              stage_gradient(first + segment, segment, (block - input_blocks) / s_.target_blocks,
                             (block - input_blocks) % s_.target_blocks, scratch));
    });
  }

  // `index` counts all segments, `segment` those that are staged together.
  void stage_input(int64_t index, int64_t segment, int64_t group, int64_t block, T* scratch) const {
    Window window = s_.window;
    window.top = s_.first_row(index) * shape_.stride[0] - shape_.padding[0];
    window.rows = s_.winograd ? s_.rows + 2 : s_.window_rows(s_.rows_of(index));
    T* const staged = s_.winograd ? scratch : s_.input_block(segment, group, block);
    stage(input_, index / s_.strips, s_.input_channel(group, block), s_.count_of(s_.depth, block),
          shape_.height, shape_.width, window, staged);
    if (s_.winograd)
      transform_tiles<2>(staged, window.row_pitch(), s_.rows / 2, s_.across(),
                         s_.input_tiles(group, block) + segment * s_.tiles * L, s_.run());
  }

  // Gives the sum over the pixels.
  Vector<T> stage_gradient(int64_t index, int64_t segment, int64_t group, int64_t block,
                           T* scratch) const {
    const int count = s_.count_of(s_.targets, block);
    Vector<T> sum{};
    if (count <= 0) return sum;
    const int64_t rows = s_.rows_of(index);
    T* const staged = s_.winograd ? scratch : s_.target_block(segment, group, block);
    // Winograd's tiles may reach past the edges, where dZ is staged as zeros.
    const Window window{s_.first_row(index), 0, s_.winograd ? s_.rows : rows,
                        s_.winograd ? 2 * s_.across() : shape_.out_width, 1};
    stage(gradient_, index / s_.strips, s_.target_channel(group, block), count, shape_.out_height,
          shape_.out_width, window, staged);
    for (int64_t y = 0; y < rows; ++y)
      sum += sum_pixels(staged + y * window.columns * L, shape_.out_width);
    if (s_.winograd)
      transform_gradient(staged, window.columns, s_.rows / 2, s_.across(),
                         s_.target_tiles(group, block) + segment * s_.tiles * L, s_.run());
    return sum;
  }

  // The sums of one task: a block of channels with a lane set of targets.
  struct Part {
    int64_t group, set, block;
    int channels, vectors;
    T* sums;
    int64_t sums_row;
  };
  Part part_of(int worker, int64_t task, int64_t elements) const {
    const int64_t sets = s_.target_blocks / V;
    const int64_t block = task % s_.blocks, set = task / s_.blocks % sets;
    const Part part{task / s_.blocks / sets,
                    set,
                    block,
                    s_.count_of(s_.depth, block),
                    static_cast<int>(min64(V, ceil_div(s_.targets - set * set_lanes<T>, L))),
                    sums_ + worker * sums_size_,
                    elements * set_lanes<T>};
    for (int64_t i = 0; i < L * part.sums_row; i += L) store(part.sums + i, Vector<T>{});
    return part;
  }
  int64_t parts() const { return s_.groups * (s_.target_blocks / V) * s_.blocks; }

  // Winograd's F(3x3, 2x2): the gradient of the transformed filters, transformed back.
  void sum_tiles(int64_t count, bool add) {
    each_task(parallel_, parts(), [&](int worker, int64_t task) {
      const Part part = part_of(worker, task, gradient_elements);
      for (int e = 0; e < gradient_elements; ++e)
        accumulate(part.channels, part.vectors,
                   s_.input_tiles(part.group, part.block) + e * s_.run(), 0,
                   s_.target_tiles(part.group, part.set * V) + e * s_.run(), 0,
                   gradient_elements * s_.run(), 1, count * s_.tiles, part.sums + e * set_lanes<T>,
                   part.sums_row);
      for (int c = 0; c < part.channels; ++c) {
        for (int v = 0; v < part.vectors; ++v)
          untransform_filter(part.sums + c * part.sums_row + v * L,
                             part.sums + c * taps_ * set_lanes<T> + v * L, set_lanes<T>);
      }
      store_part(part, 0, taps_, add);
    });
  }

  void sum_segments(int64_t first, int64_t count) {
    // Few tasks are cut further, one row of the kernel each.
    const int64_t cuts = parts() < 8 ? shape_.kernel[0] : 1, cut_rows = shape_.kernel[0] / cuts;
    each_task(parallel_, parts() * cuts, [&](int worker, int64_t task) {
      const Part part = part_of(worker, task / cuts, taps_);
      const int64_t top = task % cuts * cut_rows;
      for (int64_t segment = 0; segment < count; ++segment) {
        const T* const x = s_.input_block(segment, part.group, part.block);
        const T* const dz = s_.target_block(segment, part.group, part.set * V);
        for (int64_t r = top; r < top + cut_rows; ++r) {
          for (int64_t s = 0; s < shape_.kernel[1]; ++s)
            accumulate(part.channels, part.vectors, x + s_.shift(r, s),
                       shape_.stride[0] * s_.window.row_pitch() * L, dz, shape_.out_width * L,
                       s_.rows * shape_.out_width * L, s_.rows_of(first + segment),
                       shape_.out_width, part.sums + (r * shape_.kernel[1] + s) * set_lanes<T>,
                       part.sums_row);
        }
      }
      store_part(part, top * shape_.kernel[1], cut_rows * shape_.kernel[1], first > 0);
    });
  }

  void store_part(const Part& part, int64_t first, int64_t taps, bool add) const {
    for (int v = 0; v < part.vectors; ++v) {
      const int64_t target = part.set * set_lanes<T> + v * L;
      store_sums(part.sums + v * L, part.group * s_.targets + target,
                 static_cast<int>(min64(L, s_.targets - target)), part.block * L, part.channels,
                 first, taps, add);
    }
  }

  // sums[channel][tap][lane] of `count` lanes to (or onto) grad_weight, taps [first, first + taps).
  void store_sums(const T* sums, int64_t out, int count, int64_t channel, int channels,
                  int64_t first, int64_t taps, bool add) const {
    T* const target = grad_weight_ + (out * s_.depth + channel) * taps_;
    const int64_t row = s_.depth * taps_;
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

  void sum_depthwise(int64_t first, int64_t count) {
    each_task(parallel_, s_.blocks, [&](int, int64_t b) {
      const int lanes_here = s_.count_of(s_.depth, b);
      for (int64_t tap = 0; tap < taps_; ++tap) {
        Vector<T> sum{};
        for (int64_t segment = 0; segment < count; ++segment) {
          const T* const x = s_.input_block(segment, 0, b) +
                             s_.shift(tap / shape_.kernel[1], tap % shape_.kernel[1]);
          const T* const dz = s_.target_block(segment, 0, b);
          for (int64_t y = 0; y < s_.rows_of(first + segment); ++y) {
            const T* const x_row = x + y * shape_.stride[0] * s_.window.row_pitch() * L;
            const T* const dz_row = dz + y * shape_.out_width * L;
            Vector<T> part[4] = {};
            for (int64_t p = 0; p < shape_.out_width; ++p)
              part[p % 4] += load(x_row + p * L) * load(dz_row + p * L);
            sum += (part[0] + part[1]) + (part[2] + part[3]);
          }
        }
        for (int lane = 0; lane < lanes_here; ++lane) {
          T& place = grad_weight_[(b * L + lane) * taps_ + tap];
          place = (first > 0 ? place : 0) + sum[lane];
        }
      }
    });
  }

  void store_bias(const T* sums) const {
    const int64_t of_group = s_.depthwise ? shape_.groups : s_.targets;
    for (int64_t group = 0; group < s_.groups; ++group) {
      for (int64_t k = 0; k < of_group; k += L)
        store(grad_bias_ + group * of_group + k, load(sums + group * s_.target_blocks * L + k),
              static_cast<int>(min64(L, of_group - k)));
    }
  }

  const Conv2dShape& shape_;
  const Source<S>&gradient_, &input_;
  const Parallel& parallel_;
  const int64_t taps_;
  T* const grad_weight_;
  S* const grad_bias_;
  Segments<T> s_;
  int64_t scratch_size_ = 0, sums_size_ = 0;
  T *scratch_ = nullptr, *sums_ = nullptr;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "conv2d/gradient_shares.h"

// The gradients of weight and bias: sums over pixels of staged input times staged dZ. The segments
// of a share are staged a few at a time; every element of the gradient then belongs to one task,
// which adds the segments in order, as the shares are, so that no sum depends on the number of
// threads.

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
        grad_weight_(static_cast<T*>(args.grad_weight)),
        grad_bias_(static_cast<S*>(args.grad_bias)),
        s_(shape_, grad_weight_ != nullptr),
        shares_(s_, grad_weight_),
        sums_row_((s_.winograd ? gradient_elements : s_.taps()) * set_lanes<T>),
        scratch_size_(s_.winograd ? (s_.rows + 2) * s_.window.row_pitch() * L : 0),
        bias_size_(s_.groups * s_.target_blocks * L) {}

  void run() {
    // With fewer shares than threads, or one, all work on one share after the other.
    const int threads = parallel_.threads;
    const bool apart = s_.shares > 1 && s_.shares >= threads;
    const int64_t teams = apart ? threads : 1, workers = apart ? 1 : threads;
    const int64_t shares_size = grad_weight_ != nullptr ? shares_.size() : 0;
    Arena arena{static_cast<char*>(workspace(Arena::bytes<T>(shares_size) +
                                             Arena::bytes<T>(s_.shares * bias_size_) +
                                             teams * team_bytes(workers)))};
    shares_.place(arena.take<T>(shares_size));
    bias_ = arena.take<T>(s_.shares * bias_size_);
    char* const memory = arena.take<char>(teams * team_bytes(workers));
    if (apart) {
      each_task(parallel_, s_.shares, [&](int worker, int64_t share) {
        sum_share(share, team_at(memory + worker * team_bytes(1), 1));
      });
    } else {
      for (int64_t share = 0; share < s_.shares; ++share)
        sum_share(share, team_at(memory, threads));
    }
    if (s_.count == 0 && grad_weight_ != nullptr)
      for (int64_t i = 0; i < shape_.outs * s_.depth * s_.taps(); ++i) grad_weight_[i] = 0;
    if (grad_weight_ != nullptr) shares_.add_up(parallel_);
    if (grad_bias_ != nullptr) store_bias();
  }

 private:
  // Those who work on one share, and their memory.
  struct Team {
    Parallel parallel;
    Segments<T> staged;
    T *bias, *scratch, *sums;
  };
  int64_t team_bytes(int64_t workers) const {
    return Arena::bytes<T>(s_.together * s_.size) + Arena::bytes<T>(s_.together * bias_size_) +
           Arena::bytes<T>(workers * scratch_size_) + Arena::bytes<T>(workers * L * sums_row_);
  }
  Team team_at(char* memory, int workers) const {
    Arena arena{memory};
    Team team{{workers, parallel_.run}, s_, nullptr, nullptr, nullptr};
    team.staged.place(arena.take<T>(s_.together * s_.size));
    team.bias = arena.take<T>(s_.together * bias_size_);
    team.scratch = arena.take<T>(workers * scratch_size_);
    team.sums = arena.take<T>(workers * L * sums_row_);
    return team;
  }

  void sum_share(int64_t share, const Team& team) const {
    T* const bias = bias_ + share * bias_size_;
    for (int64_t i = 0; i < bias_size_; ++i) bias[i] = 0;
    const int64_t begin = s_.first_of(share), end = s_.first_of(share + 1);
    for (int64_t first = begin; first < end; first += s_.together) {
      const int64_t here = min64(s_.together, end - first);
      stage_segments(team, first, here);
      for (int64_t segment = 0; segment < here; ++segment) {
        const T* const one = team.bias + segment * bias_size_;
        for (int64_t i = 0; i < bias_size_; ++i) bias[i] += one[i];
      }
      if (grad_weight_ == nullptr) continue;
      const bool add = first > begin;
      if (s_.winograd)
        sum_tiles(team, share, here, add);
      else if (s_.depthwise)
        sum_depthwise(team, share, first, here, add);
      else
        sum_segments(team, share, first, here, add);
    }
  }

  // Stages segments [first, first + count); each block of dZ leaves its sum over the pixels.
  void stage_segments(const Team& team, int64_t first, int64_t count) const {
    const int64_t input_blocks = grad_weight_ != nullptr ? s_.groups * s_.blocks : 0;
    const int64_t target_blocks = s_.groups * s_.target_blocks;
    each_task(team.parallel, count * (input_blocks + target_blocks), [&](int worker, int64_t task) {
      T* const scratch = team.scratch + worker * scratch_size_;
      const int64_t segment = task / (input_blocks + target_blocks);
      const int64_t block = task % (input_blocks + target_blocks);
      if (block < input_blocks)
        stage_input(team.staged, first + segment, segment, block / s_.blocks, block % s_.blocks,
                    scratch);
      else
        store(team.bias + (segment * target_blocks + block - input_blocks) * L,
              stage_gradient(team.staged, first + segment, segment,
                             (block - input_blocks) / s_.target_blocks,
                             (block - input_blocks) % s_.target_blocks, scratch));
    });
  }

  // `index` counts all segments, `segment` those that are staged together.
  void stage_input(const Segments<T>& to, int64_t index, int64_t segment, int64_t group,
                   int64_t block, T* scratch) const {
    Window window = s_.window;
    window.top = s_.first_row(index) * shape_.stride[0] - shape_.padding[0];
    window.rows = s_.winograd ? s_.rows + 2 : s_.window_rows(s_.rows_of(index));
    T* const staged = s_.winograd ? scratch : to.input_block(segment, group, block);
    stage(input_, index / s_.strips, s_.input_channel(group, block), s_.count_of(s_.depth, block),
          shape_.height, shape_.width, window, staged);
    if (s_.winograd)
      transform_tiles<2>(staged, window.row_pitch(), s_.rows / 2, s_.across(),
                         to.input_tiles(group, block) + segment * s_.tiles * L, s_.run());
  }

  // Gives the sum over the pixels.
  Vector<T> stage_gradient(const Segments<T>& to, int64_t index, int64_t segment, int64_t group,
                           int64_t block, T* scratch) const {
    const int count = s_.count_of(s_.targets, block);
    Vector<T> sum{};
    if (count <= 0) return sum;
    const int64_t rows = s_.rows_of(index);
    T* const staged = s_.winograd ? scratch : to.target_block(segment, group, block);
    // Winograd's tiles may reach past the edges, where dZ is staged as zeros.
    const Window window{s_.first_row(index), 0, s_.winograd ? s_.rows : rows,
                        s_.winograd ? 2 * s_.across() : shape_.out_width, 1};
    stage(gradient_, index / s_.strips, s_.target_channel(group, block), count, shape_.out_height,
          shape_.out_width, window, staged);
    for (int64_t y = 0; y < rows; ++y)
      sum += sum_pixels(staged + y * window.columns * L, shape_.out_width);
    if (s_.winograd)
      transform_gradient(staged, window.columns, s_.rows / 2, s_.across(),
                         to.target_tiles(group, block) + segment * s_.tiles * L, s_.run());
    return sum;
  }

  // Sums of zero for a part.
  T* new_sums(const Team& team, int worker) const {
    T* const sums = team.sums + worker * L * sums_row_;
    for (int64_t i = 0; i < L * sums_row_; i += L) store(sums + i, Vector<T>{});
    return sums;
  }

  // Winograd's F(3x3, 2x2): the gradient of the transformed filters, transformed back.
  void sum_tiles(const Team& team, int64_t share, int64_t count, bool add) const {
    each_task(team.parallel, s_.parts(), [&](int worker, int64_t task) {
      const GradientPart part = shares_.part(task);
      const T* const x = team.staged.input_tiles(part.group, part.channel / L);
      const T* const dz = team.staged.target_tiles(part.group, part.target / L);
      T* const sums = new_sums(team, worker);
      for (int e = 0; e < gradient_elements; ++e)
        accumulate(part.channels, part.vectors, x + e * s_.run(), 0, dz + e * s_.run(), 0,
                   gradient_elements * s_.run(), 1, count * s_.tiles, sums + e * set_lanes<T>,
                   sums_row_);
      for (int c = 0; c < part.channels; ++c) {
        for (int v = 0; v < part.vectors; ++v)
          untransform_filter(sums + c * sums_row_ + v * L,
                             sums + c * s_.taps() * set_lanes<T> + v * L, set_lanes<T>);
      }
      shares_.put(share, task, sums, 0, s_.taps(), add);
    });
  }

  void sum_segments(const Team& team, int64_t share, int64_t first, int64_t count, bool add) const {
    // Few tasks are cut further, one row of the kernel each.
    const int64_t cuts = s_.parts() < 8 ? shape_.kernel[0] : 1, rows = shape_.kernel[0] / cuts;
    each_task(team.parallel, s_.parts() * cuts, [&](int worker, int64_t task) {
      const GradientPart part = shares_.part(task / cuts);
      const int64_t top = task % cuts * rows, columns = shape_.kernel[1];
      T* const sums = new_sums(team, worker);
      for (int64_t segment = 0; segment < count; ++segment) {
        const T* const x = team.staged.input_block(segment, part.group, part.channel / L);
        const T* const dz = team.staged.target_block(segment, part.group, part.target / L);
        for (int64_t r = top; r < top + rows; ++r) {
          for (int64_t s = 0; s < columns; ++s)
            accumulate(part.channels, part.vectors, x + s_.shift(r, s),
                       shape_.stride[0] * s_.window.row_pitch() * L, dz, shape_.out_width * L,
                       s_.rows * shape_.out_width * L, s_.rows_of(first + segment),
                       shape_.out_width, sums + (r * columns + s) * set_lanes<T>, sums_row_);
        }
      }
      shares_.put(share, task / cuts, sums, top * columns, rows * columns, add);
    });
  }

  void sum_depthwise(const Team& team, int64_t share, int64_t first, int64_t count,
                     bool add) const {
    each_task(team.parallel, s_.parts(), [&](int worker, int64_t block) {
      T* const sums = new_sums(team, worker);
      for (int64_t tap = 0; tap < s_.taps(); ++tap) {
        Vector<T> sum{};
        for (int64_t segment = 0; segment < count; ++segment) {
          const T* const x = team.staged.input_block(segment, 0, block) +
                             s_.shift(tap / shape_.kernel[1], tap % shape_.kernel[1]);
          const T* const dz = team.staged.target_block(segment, 0, block);
          for (int64_t y = 0; y < s_.rows_of(first + segment); ++y) {
            const T* const x_row = x + y * shape_.stride[0] * s_.window.row_pitch() * L;
            const T* const dz_row = dz + y * shape_.out_width * L;
            Vector<T> part[4] = {};
            for (int64_t p = 0; p < shape_.out_width; ++p)
              part[p % 4] += load(x_row + p * L) * load(dz_row + p * L);
            sum += (part[0] + part[1]) + (part[2] + part[3]);
          }
        }
        store(sums + tap * set_lanes<T>, sum);
      }
      shares_.put(share, block, sums, 0, s_.taps(), add);
    });
  }

  void store_bias() const {
    for (int64_t share = 1; share < s_.shares; ++share)
      for (int64_t i = 0; i < bias_size_; ++i) bias_[i] += bias_[share * bias_size_ + i];
    const int64_t of_group = s_.depthwise ? shape_.groups : s_.targets;
    for (int64_t group = 0; group < s_.groups; ++group) {
      for (int64_t k = 0; k < of_group; k += L)
        store(grad_bias_ + group * of_group + k, load(bias_ + group * s_.target_blocks * L + k),
              static_cast<int>(min64(L, of_group - k)));
    }
  }

  const Conv2dShape& shape_;
  const Source<S>&gradient_, &input_;
  const Parallel& parallel_;
  T* const grad_weight_;
  S* const grad_bias_;
  const Segments<T> s_;
  GradientShares<T> shares_;
  const int64_t sums_row_;  // elements of the sums of one channel
  const int64_t scratch_size_, bias_size_;
  T* bias_ = nullptr;  // each share's
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

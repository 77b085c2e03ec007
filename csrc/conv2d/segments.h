#pragma once

#include "conv2d/conv2d_kernels.h"
#include "conv2d/correlation.h"
#include "conv2d/winograd.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// What the segments staged at one time may take: for a thread that stages for itself, and for all
// threads together.
constexpr int64_t own_bytes = 4 << 20, together_bytes = 8 << 20;
// What the sums of all shares may take.
constexpr int64_t most_shares = 8, shares_bytes = 5 << 19;

// The images cut into segments (rows of an image, all of them where they fit), and where the blocks
// of input and dZ that are staged of each lie. For Winograd it is transformed tiles that are kept,
// element by element, all segments side by side in each.
//
// What is staged is several times the input, and should be read by the core that wrote it. So the
// segments are dealt out in shares, by the shape alone, and one thread stages and sums a share; the
// sums of the shares are added up at the end. Where a gradient is so large that those would cost
// more, there is one share, for all threads together.
template <class T>
struct Segments {
  static constexpr int L = lanes<T>, V = tile_vectors<T>;

  const Conv2dShape& shape;
  const bool depthwise, winograd;
  const int64_t depth, targets;                 // of one group
  const int64_t groups, blocks, target_blocks;  // depthwise: one group whose lanes are the groups
  Window window;
  int64_t rows, strips, count, together;  // rows of a segment, segments of an image, of all, staged
  int64_t shares;
  int64_t tiles = 0;                      // of a segment
  int64_t input_size, target_size, size;  // elements of a segment
  T *inputs = nullptr, *gradients = nullptr;

  // Without `weight` only dZ is staged.
  Segments(const Conv2dShape& shape_, bool weight)
      : shape(shape_),
        depthwise(shape_.groups > 1 && shape_.channels == shape_.groups &&
                  shape_.outs == shape_.groups),
        winograd(shape_.winograd != 0 && weight),
        depth(shape_.channels / shape_.groups),
        targets(shape_.outs / shape_.groups),
        groups(depthwise ? 1 : shape_.groups),
        blocks(ceil_div(depthwise ? shape_.groups : depth, L)),
        target_blocks(depthwise ? blocks : ceil_div(targets, set_lanes<T>) * V) {
    const int64_t reach = (shape.kernel[1] - 1) * shape.dilation[1] + 1;
    window = {0, -shape.padding[1], 0, (shape.out_width - 1) * shape.stride[1] + reach,
              shape.stride[1]};
    const int64_t input_row = weight ? groups * blocks * window.row_pitch() * L : 0;
    const int64_t target_row = groups * target_blocks * shape.out_width * L;
    const int64_t element = sizeof(T), fit = shares_bytes / (share_size() * element + 1);
    const int64_t limit = (fit > 1 ? own_bytes : together_bytes) / element;
    rows = winograd ? round_up(shape.out_height, 2) : shape.out_height;
    while (measure(input_row, target_row) > limit && rows > 2)
      rows = round_up(ceil_div(rows, 2), 2);
    strips = ceil_div(shape.out_height, rows);
    count = shape.images * strips;
    // As many as are worth their sums: a power of two, which leaves few threads without one.
    const int64_t worth = count * size / (2 * share_size() + 1);
    for (shares = 1; 2 * shares <= min64(min64(fit, most_shares), min64(worth, count));)
      shares *= 2;
    const int64_t share = ceil_div(count, shares), fits = min64(limit / (size + 1), share);
    together = fits < 1 ? 1 : ceil_div(share, ceil_div(share, fits));
    if (winograd) window.columns = 2 * across() + 2;
  }

  // Takes memory for `together * size` elements.
  void place(T* memory) {
    inputs = memory;
    gradients =
        inputs + (winograd ? groups * blocks * gradient_elements * run() : together * input_size);
  }

  // The gradient is computed in parts, a block of channels with a lane set of targets;
  // depthwise, a block of groups.
  int64_t sets() const { return target_blocks / V; }
  int64_t parts() const { return depthwise ? blocks : groups * sets() * blocks; }
  int64_t part_size() const { return (depthwise ? 1 : L) * taps() * set_lanes<T>; }
  int64_t share_size() const { return parts() * part_size(); }
  int64_t first_of(int64_t share) const { return share * count / shares; }

  int64_t taps() const { return shape.kernel[0] * shape.kernel[1]; }
  int64_t window_rows(int64_t of) const {
    return (of - 1) * shape.stride[0] + (shape.kernel[0] - 1) * shape.dilation[0] + 1;
  }
  int64_t first_row(int64_t segment) const { return segment % strips * rows; }
  int64_t rows_of(int64_t segment) const {
    return min64(rows, shape.out_height - first_row(segment));
  }
  // Tiles across an image, and the elements of all segments' tiles.
  int64_t across() const { return ceil_div(shape.out_width, 2); }
  int64_t run() const { return together * tiles * L; }

  // Channels of a block that there are, none where it is padding; the first of them.
  int count_of(int64_t channels, int64_t block) const {
    return static_cast<int>(min64(L, (depthwise ? shape.groups : channels) - block * L));
  }
  int64_t input_channel(int64_t group, int64_t block) const { return group * depth + block * L; }
  int64_t target_channel(int64_t group, int64_t block) const { return group * targets + block * L; }

  T* input_block(int64_t segment, int64_t group, int64_t block) const {
    return inputs + segment * input_size +
           (group * blocks + block) * window_rows(rows) * window.row_pitch() * L;
  }
  T* target_block(int64_t segment, int64_t group, int64_t block) const {
    return gradients + segment * target_size +
           (group * target_blocks + block) * rows * shape.out_width * L;
  }
  T* input_tiles(int64_t group, int64_t block) const {
    return inputs + (group * blocks + block) * gradient_elements * run();
  }
  T* target_tiles(int64_t group, int64_t block) const {
    return gradients + (group * target_blocks + block) * gradient_elements * run();
  }

  // Staged offset of the input pixel that tap (r, s) sees at the first output pixel.
  int64_t shift(int64_t r, int64_t s) const {
    return (r * shape.dilation[0] * window.row_pitch() + window.column(s * shape.dilation[1])) * L;
  }

 private:
  int64_t measure(int64_t input_row, int64_t target_row) {
    tiles = rows / 2 * across();
    input_size = window_rows(rows) * input_row;
    target_size = rows * target_row;
    size = winograd ? groups * (blocks + target_blocks) * gradient_elements * tiles * L
                    : input_size + target_size;
    return size;
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

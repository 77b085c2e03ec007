#pragma once

#include "conv2d/conv2d_kernels.h"
#include "gemm/gemm.h"

// The pixels of all images as one direction of a matrix.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Pixels of the output, all images numbered through, and where they lie in the images of a tensor
// of `height` x `width`: the output itself or, `stride` apart, the input.
struct PixelGrid {
  int64_t rows, columns;  // of the output
  int64_t height, width, stride[2];

  bool dense() const { return stride[0] == 1 && stride[1] == 1; }
  int64_t pixels() const { return rows * columns; }

  // A run of pixels that lie stride[1] apart, from `first` on.
  struct Run {
    int64_t image, pixel;
    int64_t length;
  };
  Run run(int64_t first, int64_t most) const {
    const int64_t image = first / pixels(), p = first % pixels();
    if (dense()) return {image, p, min64(most, pixels() - p)};
    const int64_t row = p / columns, column = p % columns;
    return {image, row * stride[0] * width + column * stride[1], min64(most, columns - column)};
  }
  // The same pixel, numbered through all images of the tensor.
  int64_t pixel(int64_t index) const {
    if (dense()) return index;
    const Run found = run(index, 1);
    return found.image * height * width + found.pixel;
  }
};

// The runs, of at most a vector each, of a panel's or a tile's pixels.
template <class T>
struct Runs {
  int count = 0;
  int column[tile_columns<T>];
  PixelGrid::Run run[tile_columns<T>];

  Runs(const PixelGrid& grid, int64_t first, int columns) {
    for (int done = 0; done < columns; ++count) {
      const int left = columns - done, most = lanes<T> - done % lanes<T>;
      column[count] = done;
      run[count] = grid.run(first + done, left < most ? left : most);
      done += static_cast<int>(run[count].length);
    }
  }
  // Calls body(sums, column, run).
  template <class Body>
  void each(const T* tile_row, const Body& body) const {
    for (int i = 0; i < count; ++i) {
      const T* const sums = tile_row + column[i];
      const int length = static_cast<int>(run[i].length);
      body(length == lanes<T> ? load(sums) : load(sums, length), column[i], run[i]);
    }
  }
};

inline PixelGrid input_grid(const Conv2dShape& shape) {
  return {shape.out_height,
          shape.out_width,
          shape.height,
          shape.width,
          {shape.stride[0], shape.stride[1]}};
}
inline PixelGrid output_grid(const Conv2dShape& shape) {
  return {shape.out_height, shape.out_width, shape.out_height, shape.out_width, {1, 1}};
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

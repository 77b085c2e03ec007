#pragma once

#include "conv2d/correlation.h"
#include "conv2d/image_operand.h"

// Images of few channels are staged in planes, one for each channel, and not in blocks (stage.h),
// of whose lanes most would be empty. An element of a filter is then an offset in the planes, the
// same for every pixel of the output: implicit im2col without a column matrix.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Copies elements `stride` apart. Writes whole vectors, with zeros past `count`.
template <class S>
void copy_elements(const S* source, int64_t stride, int64_t count, Accumulator<S>* target) {
  constexpr int L = lanes<Accumulator<S>>;
  for (int64_t i = 0; i < count; i += L) {
    const S* const from = source + i * stride;
    const int valid = static_cast<int>(min64(L, count - i));
    if (valid == L && stride == 1)
      store(target + i, load(from));
    else if (valid == L && stride == 2)
      store(target + i, load_even(from));
    else
      store(target + i, gather(from, stride, valid));
  }
}

// The input pixels of up to `rows` rows of the output, all channels, padded with zeros. Columns are
// sorted by their remainder modulo `step`, as in stage.h.
template <class S>
struct Planes {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;
  const Conv2dShape& shape;
  const S* const input;
  const int64_t rows;
  Window window;

  Planes(const Conv2dShape& shape_, const S* input_, int64_t rows_, int64_t step)
      : shape(shape_),
        input(input_),
        rows(rows_),
        window{0, -shape.padding[1], rows_of(rows),
               (shape.out_width - 1) * shape.stride[1] + reach(1), step} {}

  // Elements, with room behind for whole vectors.
  int64_t size() const { return shape.channels * plane() + L; }
  // From one row of the output to the next.
  int64_t row_pitch() const { return shape.stride[0] * window.row_pitch(); }

  // Where each element of a filter, in the filters' order in memory, finds its pixel.
  void make_offsets(int64_t* offsets) const {
    for (int64_t c = 0; c < shape.channels; ++c) {
      for (int64_t r = 0; r < shape.kernel[0]; ++r) {
        for (int64_t s = 0; s < shape.kernel[1]; ++s)
          *offsets++ = c * plane() + r * shape.dilation[0] * window.row_pitch() +
                       window.column(s * shape.dilation[1]);
      }
    }
  }

  // What rows [from, past) of the output of an image need.
  void stage(int64_t image, int64_t from, int64_t past, T* target) const {
    const int64_t pixel = shape.channels_last ? shape.channels : 1;
    const int64_t channel = shape.channels_last ? 1 : shape.height * shape.width;
    const int64_t top = from * shape.stride[0] - shape.padding[0], count = rows_of(past - from);
    const S* const whole = input + image * shape.channels * shape.height * shape.width;
    for (int64_t c = 0; c < shape.channels; ++c) {
      for (int64_t y = 0; y < count; ++y) {
        const int64_t row = top + y;
        const bool inside = row >= 0 && row < shape.height;
        stage_row(inside ? whole + c * channel + row * shape.width * pixel : nullptr, pixel,
                  target + c * plane() + y * window.row_pitch());
      }
    }
  }

 private:
  int64_t plane() const { return window.rows * window.row_pitch(); }
  int64_t reach(int d) const { return (shape.kernel[d] - 1) * shape.dilation[d] + 1; }
  int64_t rows_of(int64_t out_rows) const { return (out_rows - 1) * shape.stride[0] + reach(0); }

  // Each phase spills zeros into the next, which is written after it.
  void stage_row(const S* source, int64_t pixel, T* target) const {
    const int64_t pitch = window.phase_pitch(), step = window.step;
    for (int64_t phase = 0; phase < step; ++phase, target += pitch) {
      const int64_t x = window.left + phase;
      const int64_t begin = x < 0 ? min64(pitch, ceil_div(-x, step)) : 0;
      const int64_t inside = x < shape.width ? min64(pitch, ceil_div(shape.width - x, step)) : 0;
      const int64_t end = source == nullptr || inside < begin ? begin : inside;
      for (int64_t i = 0; i < begin; ++i) target[i] = 0;
      if (begin < end)
        copy_elements(source + (x + begin * step) * pixel, step * pixel, end - begin,
                      target + begin);
      for (int64_t i = end; i < pitch; ++i) target[i] = 0;
    }
  }
};

// Rows of the output to stage at one time: what they need of the input, and `row_bytes` beside it,
// should stay in the L2.
template <class T>
int64_t plane_rows(const Conv2dShape& shape, int64_t row_bytes, int64_t bytes) {
  const int64_t width = (shape.out_width - 1) * shape.stride[1] +
                        (shape.kernel[1] - 1) * shape.dilation[1] + shape.stride[1];
  const int64_t row = shape.channels * width * static_cast<int64_t>(sizeof(T));
  const int64_t fixed = row * ((shape.kernel[0] - 1) * shape.dilation[0]);
  const int64_t fit = (bytes - fixed) / (row * shape.stride[0] + row_bytes);
  const int64_t rows = min64(shape.out_height, fit < 1 ? 1 : fit);
  return ceil_div(shape.out_height, ceil_div(shape.out_height, rows));
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

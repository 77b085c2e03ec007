#pragma once

#include "conv2d/pointwise.h"

// Implicit im2col for contiguous images of few channels, of which staged vectors (stage.h) would be
// mostly empty: the column matrix as an operand of the GEMM, which packs its panels out of the
// image and never sees it whole.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// A row of the column matrix is an element of a filter, in the filters' order in memory: where in
// the image it lies for the first pixel of the output, whose (y, x) may be outside.
struct ColumnRow {
  int64_t offset;
  int32_t y, x;
};

// Pixels side by side in a row of the output.
struct ColumnRun {
  int64_t image, row, column, length;
};

template <class S>
struct ColumnMatrix {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;
  const S* input;
  const Conv2dShape& shape;
  const ColumnRow* rows;

  ColumnRun run(int64_t first, int64_t most) const {
    const int64_t pixels = shape.out_height * shape.out_width, p = first % pixels;
    const int64_t column = p % shape.out_width;
    return {first / pixels, p / shape.out_width, column, min64(most, shape.out_width - column)};
  }
};

// Vectors of a run's pixels for each row of the matrix, as pack.h wants a loader.
template <class S>
struct ColumnLoader {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;
  const S* input;  // of the run's first pixel, and its place in the image
  int64_t y, x, height, width, stride;
  const ColumnRow* rows;

  ColumnLoader(const ColumnMatrix<S>& from, const ColumnRun& run)
      : y(run.row * from.shape.stride[0]),
        x(run.column * from.shape.stride[1]),
        height(from.shape.height),
        width(from.shape.width),
        stride(from.shape.stride[1]),
        rows(from.rows) {
    input = from.input + (run.image * from.shape.channels * height + y) * width + x;
  }

  LAMINA_INLINE Vector<T> operator()(int64_t row, int64_t column, int count) const {
    const ColumnRow at = rows[row];
    const int64_t first = x + at.x + column * stride;
    if (y + at.y < 0 || y + at.y >= height) return Vector<T>{};
    const S* const source = input + at.offset + column * stride;
    if (count == L && first >= 0 && first + (L - 1) * stride < width) {
      if (stride == 1) return load(source);
      if (stride == 2) return load_even(source);
    }
    return edge(source, first, count);
  }

 private:
  __attribute__((noinline)) Vector<T> edge(const S* source, int64_t first, int count) const {
    S elements[L] = {};
    for (int i = 0; i < count; ++i, first += stride) {
      if (first >= 0 && first < width) elements[i] = source[i * stride];
    }
    return load(elements);
  }
};

// Panels along the pixels, depth along the rows of the matrix.
template <class S>
struct ColumnPanels : ColumnMatrix<S> {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    for (int base = 0; base < WIDTH; base += L) {
      const int valid = count - base < L ? count - base : L;
      pack_vector<WIDTH>(panel + base, first + base, valid, depth, depths);
    }
  }
  template <int WIDTH>
  void packed(const T*, int64_t, int, int64_t, int) const {}

 private:
  // Runs are stored as whole vectors: the next one, or zeros, overwrite their ends.
  template <int WIDTH>
  void pack_vector(T* target, int64_t first, int count, int64_t depth, int depths) const {
    const ColumnRun whole = this->run(first, count > 0 ? count : 1);
    if (whole.length == L) {
      const ColumnLoader<S> loader(*this, whole);
      for (int d = 0; d < depths; ++d) store(target + d * WIDTH, loader(depth + d, 0, L));
      return;
    }
    T joined[blocking.depth][2 * L];
    for (int d = 0; d < depths; ++d) store(joined[d], Vector<T>{});
    for (int done = 0; done < count;) {
      const ColumnRun run = this->run(first + done, count - done);
      const ColumnLoader<S> loader(*this, run);
      const int length = static_cast<int>(run.length);
      for (int d = 0; d < depths; ++d) store(joined[d] + done, loader(depth + d, 0, length));
      done += length;
    }
    for (int d = 0; d < depths; ++d) store(target + d * WIDTH, load(joined[d]));
  }
};

// Panels along the rows of the matrix, depth along the pixels.
template <class S>
struct ColumnDepth : ColumnMatrix<S> {
  using T = Accumulator<S>;

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    for (int64_t done = 0; done < depths;) {
      const ColumnRun run = this->run(depth + done, depths - done);
      pack_transposed<T, WIDTH>(ColumnLoader<S>(*this, run), panel + done * WIDTH, first, count, 0,
                                static_cast<int>(run.length));
      done += run.length;
    }
  }
  template <int WIDTH>
  void packed(const T*, int64_t, int, int64_t, int) const {}
};

// The rows of the column matrix.
struct ColumnRows {
  ColumnRow* rows;

  explicit ColumnRows(const Conv2dShape& shape) {
    const int64_t taps = shape.kernel[0] * shape.kernel[1];
    rows = new ColumnRow[shape.channels * taps];
    for (int64_t i = 0; i < shape.channels * taps; ++i) {
      const int64_t r = i % taps / shape.kernel[1], s = i % shape.kernel[1];
      const int64_t y = r * shape.dilation[0] - shape.padding[0];
      const int64_t x = s * shape.dilation[1] - shape.padding[1];
      rows[i] = {(i / taps * shape.height + y) * shape.width + x, static_cast<int32_t>(y),
                 static_cast<int32_t>(x)};
    }
  }
  ColumnRows(const ColumnRows&) = delete;
  ~ColumnRows() { delete[] rows; }
};

template <class S>
void columns_forward(const Conv2dShape& shape, const S* input, const S* weight, const Finish<S>& to,
                     const Parallel& parallel) {
  using T = Accumulator<S>;
  const ColumnRows rows(shape);
  const PixelGrid grid = output_grid(shape);
  const int64_t depth = shape.channels * shape.kernel[0] * shape.kernel[1];
  with_kind(to.activation, [&](auto kind) {
    multiply_any<T>(shape.outs, shape.images * grid.pixels(), depth,
                    Matrix<T, S>{weight, depth, 1, shape.outs},
                    ColumnPanels<S>{{input, shape, rows.rows}},
                    FinishTile<S, decltype(kind)::value>{to, grid}, parallel);
  });
}

template <class S>
void columns_grad_weight(const Conv2dShape& shape, const Source<S>& gradient, const S* input,
                         Accumulator<S>* grad_weight, S* grad_bias, const Parallel& parallel) {
  const ColumnRows rows(shape);
  const int64_t columns = shape.channels * shape.kernel[0] * shape.kernel[1];
  multiply_gradient(shape, gradient, ColumnDepth<S>{{input, shape, rows.rows}}, columns,
                    grad_weight, grad_bias, parallel);
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

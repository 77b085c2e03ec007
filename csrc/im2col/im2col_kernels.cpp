#include "im2col/im2col_kernels.h"

#include "common/vec.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The outputs [begin, end) whose input, `stride` apart from `first` on, lies inside [0, size).
struct Inside {
  int64_t begin, end;
  Inside(int64_t first, int64_t stride, int64_t size, int64_t outputs)
      : begin(first < 0 ? (-first + stride - 1) / stride : 0),
        end(size > first ? (size - first + stride - 1) / stride : 0) {
    if (end > outputs) end = outputs;
    if (begin > end) begin = end;
  }
};

// Calls body(row of the column matrix, input row, output row, inputs' first column, Inside of the
// columns) for every tap of the kernel and every output row of one plane.
template <class Body>
void each_run(const Im2col& args, const Body& body) {
  for (int64_t r = 0; r < args.kernel[0]; ++r) {
    for (int64_t s = 0; s < args.kernel[1]; ++s) {
      const int64_t left = s * args.dilation[1] - args.padding[1];
      const Inside inside(left, args.stride[1], args.width, args.out_width);
      for (int64_t y = 0; y < args.out_height; ++y)
        body(r * args.kernel[1] + s, y * args.stride[0] + r * args.dilation[0] - args.padding[0], y,
             left, inside);
    }
  }
}

template <class S>
void columns_of_plane(const Im2col& args, const S* image, S* columns) {
  each_run(args, [&](int64_t tap, int64_t row, int64_t y, int64_t left, Inside inside) {
    S* const target = columns + (tap * args.out_height + y) * args.out_width;
    if (row < 0 || row >= args.height) inside.begin = inside.end = 0;
    const S* const source = image + row * args.width + left;
    for (int64_t x = 0; x < inside.begin; ++x) target[x] = S{};
    if (args.stride[1] == 1)
      __builtin_memcpy(target + inside.begin, source + inside.begin,
                       (inside.end - inside.begin) * sizeof(S));
    else
      for (int64_t x = inside.begin; x < inside.end; ++x) target[x] = source[x * args.stride[1]];
    for (int64_t x = inside.end; x < args.out_width; ++x) target[x] = S{};
  });
}

template <class S>
void sum_of_plane(const Im2col& args, const S* columns, Accumulator<S>* sums) {
  using T = Accumulator<S>;
  for (int64_t i = 0; i < args.height * args.width; ++i) sums[i] = 0;
  each_run(args, [&](int64_t tap, int64_t row, int64_t y, int64_t left, Inside inside) {
    if (row < 0 || row >= args.height) return;
    const S* const source = columns + (tap * args.out_height + y) * args.out_width;
    T* const target = sums + row * args.width + left;
    int64_t x = inside.begin;
    if (args.stride[1] == 1)
      for (; x + lanes<T> <= inside.end; x += lanes<T>)
        store(target + x, load(target + x) + load(source + x));
    for (; x < inside.end; ++x) target[x * args.stride[1]] += load_element(&source[x]);
  });
}

template <class S>
void all_columns(const Im2col& args, const Parallel& parallel) {
  const int64_t image = args.height * args.width;
  const int64_t columns = args.kernel[0] * args.kernel[1] * args.out_height * args.out_width;
  parallel_for(parallel, static_cast<int>(args.planes), [&](int plane) {
    columns_of_plane(args, static_cast<const S*>(args.image) + plane * image,
                     static_cast<S*>(args.columns) + plane * columns);
  });
}

template <class S>
void all_sums(const Im2col& args, const Parallel& parallel) {
  using T = Accumulator<S>;
  const int64_t image = args.height * args.width;
  const int64_t columns = args.kernel[0] * args.kernel[1] * args.out_height * args.out_width;
  parallel_for(parallel, static_cast<int>(args.planes), [&](int plane) {
    const S* const source = static_cast<const S*>(args.columns) + plane * columns;
    S* const target = static_cast<S*>(args.image) + plane * image;
    if constexpr (sizeof(S) == sizeof(T)) {
      sum_of_plane(args, source, target);
    } else {
      T* const sums = new T[image];
      sum_of_plane(args, source, sums);
      for (int64_t i = 0; i < image; i += lanes<T>) {
        const int64_t left = image - i;
        const int count = left < lanes<T> ? static_cast<int>(left) : lanes<T>;
        store(target + i, load(sums + i, count), count);
      }
      delete[] sums;
    }
  });
}

}  // namespace

void im2col(const Im2col& args, const Parallel& parallel) {
  switch (args.type) {
    case FloatType::f32:
      return all_columns<float>(args, parallel);
    case FloatType::f64:
      return all_columns<double>(args, parallel);
    case FloatType::bf16:
      return all_columns<bfloat16>(args, parallel);
    case FloatType::f16:
      return all_columns<float16>(args, parallel);
  }
}

void col2im(const Im2col& args, const Parallel& parallel) {
  switch (args.type) {
    case FloatType::f32:
      return all_sums<float>(args, parallel);
    case FloatType::f64:
      return all_sums<double>(args, parallel);
    case FloatType::bf16:
      return all_sums<bfloat16>(args, parallel);
    case FloatType::f16:
      return all_sums<float16>(args, parallel);
  }
}

}  // namespace LAMINA_ISA
}  // namespace lamina

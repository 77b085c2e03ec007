#pragma once

#include "conv2d/activation_kind.h"
#include "gemm/derivative.h"

// Kernels work on images in blocks of lanes<T> channels: block[y][x][channel], each pixel of a
// block one vector. Staging brings part of a tensor of either layout into that form, with its zero
// padding; finishing (finish.h) is the way back. Both touch memory that is about to be used or has
// just been written, and spare the kernels every case of edges, layouts and types.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// What packing and epilogues do for each vector is always inlined, but for the baseline, where GCC
// 12 crashes on it (in gimple_expand_vec_cond_expr).
#if defined(__AVX2__)
#  define LAMINA_INLINE inline __attribute__((always_inline))
#else
#  define LAMINA_INLINE __attribute__((noinline))
#endif

// Where element (image, channel, pixel) of a tensor lies, and which of the two directions is dense.
struct Layout {
  int64_t channels, pixels;
  bool channels_last;

  int64_t offset(int64_t image, int64_t channel, int64_t pixel) const {
    return channels_last ? (image * pixels + pixel) * channels + channel
                         : (image * channels + channel) * pixels + pixel;
  }
  // Of a mask (conv2d.h): its rows are what is not dense.
  int64_t mask_row(int64_t image, int64_t channel, int64_t pixel) const {
    return channels_last ? image * pixels + pixel : channel;
  }
  int64_t mask_bit(int64_t image, int64_t channel, int64_t pixel) const {
    return channels_last ? channel : image * pixels + pixel;
  }
  int64_t mask_stride(int64_t images) const {
    return ((channels_last ? channels : images * pixels) + 7) / 8;
  }
};

// A tensor to be staged: as it is, or times the derivative of an activation.
template <class S>
struct Source {
  const S* data;
  Layout layout;
  Activation activation;
  Accumulator<S> parameter;
  const void* saved;
  int64_t mask_stride;
};

// Vectors of a source, lanes along the dense direction.
template <class S, Kind K>
struct Reader {
  using T = Accumulator<S>;
  const Source<S> from;
  const Piecewise<T> piecewise;

  explicit Reader(const Source<S>& source)
      : from(source), piecewise(source.activation, source.parameter) {}

  LAMINA_INLINE Vector<T> operator()(int64_t image, int64_t channel, int64_t pixel,
                                     int count) const {
    const int64_t row = from.layout.mask_row(image, channel, pixel);
    return at<false>(from.layout.offset(image, channel, pixel), mask_row(row),
                     from.layout.mask_bit(image, channel, pixel), count);
  }

  // For those who step from vector to vector: what lies at `offset`, with its bits in a row of the
  // mask from `bit` on, at the beginning of a byte if ALIGNED.
  template <bool ALIGNED>
  LAMINA_INLINE Vector<T> at(int64_t offset, const uint8_t* mask, int64_t bit, int count) const {
    const Vector<T> value = read(from.data + offset, count);
    if constexpr (K == Kind::none) {
      return value;
    } else if constexpr (K == Kind::piecewise) {
      return piecewise.scale(value, bits_mask(bits<ALIGNED>(mask, bit, count), T{}));
    } else {
      const Vector<T> saved = read(static_cast<const S*>(from.saved) + offset, count);
      return value * smooth_derivative<T>(from.activation, saved);
    }
  }
  // Null where there is none.
  const uint8_t* mask_row(int64_t row) const {
    return K == Kind::piecewise ? static_cast<const uint8_t*>(from.saved) + row * from.mask_stride
                                : nullptr;
  }

 private:
  static Vector<T> read(const S* source, int count) {
    return count == lanes<T> ? load(source) : load(source, count);
  }
  template <bool ALIGNED>
  LAMINA_INLINE static uint32_t bits(const uint8_t* mask, int64_t bit, int count) {
    if constexpr (ALIGNED && lanes<T> % 8 == 0) {
      if (count == lanes<T>) {
        uint32_t whole = 0;
        __builtin_memcpy(&whole, mask + bit / 8, lanes<T> / 8);
        return whole;
      }
    }
    return read_bits(mask, bit, count);
  }
};

// A window of rows and columns of an image, which may reach past its edges: staged pixel (y, x) is
// the image's (y + top, x + left). Columns are sorted by their remainder modulo `step`, so that
// pixels `step` apart are neighbours.
struct Window {
  int64_t top, left, rows, columns, step;

  int64_t phase_pitch() const { return (columns + step - 1) / step; }
  int64_t row_pitch() const { return step * phase_pitch(); }
  int64_t column(int64_t x) const { return x % step * phase_pitch() + x / step; }
  template <class T>
  int64_t block() const {  // elements of one block of channels
    return rows * row_pitch() * lanes<T>;
  }
};

template <class R, class T>
void stage_with(const R& reader, int64_t image, int64_t channel, int count, int64_t height,
                int64_t width, const Window& window, T* target) {
  constexpr int L = lanes<T>;
  const int64_t first = window.left < 0 ? 0 : window.left;
  const int64_t past = width < window.left + window.columns ? width : window.left + window.columns;
  for (int64_t y = 0; y < window.rows; ++y, target += window.row_pitch() * L) {
    const int64_t row = y + window.top;
    const bool inside = row >= 0 && row < height && first < past;
    const int64_t begin = inside ? first - window.left : 0, end = inside ? past - window.left : 0;
    for (int64_t x = 0; x < begin; ++x) store(target + window.column(x) * L, Vector<T>{});
    for (int64_t x = end; x < window.row_pitch(); ++x)
      store(target + window.column(x) * L, Vector<T>{});
    if (!inside) continue;
    const int64_t pixel = row * width + window.left;
    if (reader.from.layout.channels_last) {
      for (int64_t x = begin; x < end; ++x)
        store(target + window.column(x) * L, reader(image, channel, pixel + x, count));
      continue;
    }
    for (int64_t x = begin; x < end; x += L) {
      const int valid = end - x < L ? static_cast<int>(end - x) : L;
      Vector<T> square[L];
      if (count == L && valid == L) {
#pragma GCC unroll 16
        for (int c = 0; c < L; ++c) square[c] = reader(image, channel + c, pixel + x, L);
      } else {
        for (int c = 0; c < L; ++c)
          square[c] = c < count ? reader(image, channel + c, pixel + x, valid) : Vector<T>{};
      }
      transpose(square);
      if (window.step == 1 && valid == L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(target + (x + i) * L, square[i]);
      } else {
        for (int i = 0; i < valid; ++i) store(target + window.column(x + i) * L, square[i]);
      }
    }
  }
}

// Stages `count` channels from `channel` on.
template <class S>
void stage(const Source<S>& source, int64_t image, int64_t channel, int count, int64_t height,
           int64_t width, const Window& window, Accumulator<S>* target) {
  with_kind(source.activation, [&](auto kind) {
    const Reader<S, decltype(kind)::value> reader(source);
    stage_with(reader, image, channel, count, height, width, window, target);
  });
}

// The sum over a block's pixels.
template <class T>
Vector<T> sum_pixels(const T* block, int64_t pixels) {
  constexpr int L = lanes<T>;
  Vector<T> part[4] = {};
  int64_t p = 0;
  for (; p + 4 <= pixels; p += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) part[i] += load(block + (p + i) * L);
  }
  for (; p < pixels; ++p) part[0] += load(block + p * L);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include "gemm/derivative.h"

// Kernels work on images in blocks of lanes<T> channels: block[y][x][channel], each pixel of a
// block one vector. Staging brings part of a tensor of either layout into that form, with its zero
// padding; finishing takes results out of it, through bias, residual and activation. Both touch
// memory that is about to be used or has just been written, and spare the kernels every case of
// edges, layouts and types.

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
template <class S, Activation F>
struct Reader {
  using T = Accumulator<S>;
  const Source<S> from;

  LAMINA_INLINE Vector<T> operator()(int64_t image, int64_t channel, int64_t pixel,
                                     int count) const {
    const int64_t offset = from.layout.offset(image, channel, pixel);
    const Vector<T> value = read(from.data + offset, count);
    if constexpr (F == Activation::none) {
      return value;
    } else if constexpr (saves_mask(F)) {
      const uint8_t* row = static_cast<const uint8_t*>(from.saved) +
                           from.layout.mask_row(image, channel, pixel) * from.mask_stride;
      const uint32_t bits = read_bits(row, from.layout.mask_bit(image, channel, pixel), count);
      const Mask<T> kept = bits_mask(bits, T{});
      return kept ? value : F == Activation::leaky_relu ? value * from.parameter : Vector<T>{};
    } else {
      return value * derivative<F, T>(read(static_cast<const S*>(from.saved) + offset, count));
    }
  }

 private:
  static Vector<T> read(const S* source, int count) {
    return count == lanes<T> ? load(source) : load(source, count);
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
      Vector<T> square[L] = {};
      if (count == L && valid == L) {
#pragma GCC unroll 16
        for (int c = 0; c < L; ++c) square[c] = reader(image, channel + c, pixel + x, L);
      } else {
        for (int c = 0; c < count; ++c) square[c] = reader(image, channel + c, pixel + x, valid);
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
  with_activation(source.activation, [&](auto f) {
    const Reader<S, decltype(f)::value> reader{source};
    stage_with(reader, image, channel, count, height, width, window, target);
  });
}

// What becomes of finished sums: output = activation(sum + bias + residual), and what is saved.
template <class S>
struct Finish {
  using T = Accumulator<S>;
  S* output;
  Layout layout;
  const S* bias;
  const S* residual;
  Activation activation;
  T parameter;
  uint8_t* mask;
  int64_t mask_stride;
  S* preactivation;
};

template <class S, Activation F>
struct Finisher {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;
  const Finish<S> to;

  // One vector, whose bits (one a lane) of the mask it returns.
  LAMINA_INLINE uint32_t put(Vector<T> z, int64_t offset, int count) const {
    if (to.residual != nullptr)
      z += count == L ? load(to.residual + offset) : load(to.residual + offset, count);
    if constexpr (saves_preactivation(F)) {
      if (to.preactivation != nullptr) write(to.preactivation + offset, z, count);
    }
    write(to.output + offset, activate<F>(z, to.parameter), count);
    if constexpr (!saves_mask(F)) return 0;
    const T threshold = F == Activation::threshold ? to.parameter : 0;
    return ~mask_bits((Mask<T>)(z <= threshold)) & ((1u << count) - 1);
  }

  // Pixels side by side, `count` channels each.
  void by_pixel(const T* block, int64_t image, int64_t channel, int count, int64_t pixel,
                int64_t pixels) const {
    Vector<T> bias{};
    if (to.bias != nullptr) bias = load(to.bias + channel, count);
    for (int64_t p = 0; p < pixels; ++p) {
      const Vector<T> z = load(block + p * L) + bias;
      const uint32_t bits = put(z, to.layout.offset(image, channel, pixel + p), count);
      if (saves_mask(F) && to.mask != nullptr) {
        uint8_t* const row =
            to.mask + to.layout.mask_row(image, channel, pixel + p) * to.mask_stride;
        or_bits(row, channel, bits, count);
      }
    }
  }

  // Channels one after the other, `pixels` pixels each. The bits of neighbouring runs of pixels
  // share bytes, and other threads may write those runs: bits are collected aside, and the bytes at
  // the ends of the run are merged atomically.
  void by_channel(const T* block, int64_t image, int64_t channel, int count, int64_t pixel,
                  int64_t pixels) const {
    constexpr int64_t run = 1024;
    for (int64_t begin = 0; begin < pixels; begin += run) {
      const int64_t length = pixels - begin < run ? pixels - begin : run;
      const int64_t first_bit = to.layout.mask_bit(image, channel, pixel + begin);
      const bool masks = saves_mask(F) && to.mask != nullptr;
      uint8_t bits[L][run / 8 + 8];
      if (masks) __builtin_memset(bits, 0, sizeof bits);
      for (int64_t p = 0; p < length; p += L) {
        const int valid = length - p < L ? static_cast<int>(length - p) : L;
        Vector<T> square[L] = {};
        const T* const source = block + (begin + p) * L;
        if (valid == L) {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) square[i] = load(source + i * L);
        } else {
          for (int i = 0; i < valid; ++i) square[i] = load(source + i * L);
        }
        transpose(square);
        for (int c = 0; c < count; ++c) {
          const T shift = to.bias != nullptr ? load(to.bias + channel + c, 1)[0] : 0;
          const int64_t offset = to.layout.offset(image, channel + c, pixel + begin + p);
          const uint32_t kept = put(square[c] + shift, offset, valid);
          if (masks) or_bits(bits[c], first_bit % 8 + p, kept, valid);
        }
      }
      if (!masks) continue;
      const int64_t first = first_bit / 8, last = (first_bit + length - 1) / 8;
      for (int c = 0; c < count; ++c) {
        uint8_t* const row = to.mask + (channel + c) * to.mask_stride + first;
        __atomic_fetch_or(row, bits[c][0], __ATOMIC_RELAXED);
        if (last == first) continue;
        __builtin_memcpy(row + 1, bits[c] + 1, last - first - 1);
        __atomic_fetch_or(row + last - first, bits[c][last - first], __ATOMIC_RELAXED);
      }
    }
  }

 private:
  static void write(S* target, Vector<T> value, int count) {
    if (count == L)
      store(target, value);
    else
      store(target, value, count);
  }
  static void or_bits(uint8_t* bytes, int64_t first, uint32_t bits, int count) {
    const int shift = static_cast<int>(first % 8);
    bytes += first / 8;
    bits <<= shift;
    for (int byte = 0; byte * 8 < shift + count; ++byte)
      bytes[byte] |= static_cast<uint8_t>(bits >> (8 * byte));
  }
};

// Takes `count` channels of `pixels` consecutive pixels out of a block.
template <class S>
void finish(const Finish<S>& to, const Accumulator<S>* block, int64_t image, int64_t channel,
            int count, int64_t pixel, int64_t pixels) {
  with_activation(to.activation, [&](auto f) {
    const Finisher<S, decltype(f)::value> finisher{to};
    if (to.layout.channels_last)
      finisher.by_pixel(block, image, channel, count, pixel, pixels);
    else
      finisher.by_channel(block, image, channel, count, pixel, pixels);
  });
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

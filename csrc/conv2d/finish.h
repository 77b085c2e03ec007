#pragma once

#include "conv2d/stage.h"
#include "gemm/epilogue.h"

// The way of finished sums to the output, through bias, residual and activation.

namespace lamina {
namespace LAMINA_ISA {
namespace {

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

template <class S, Kind K>
struct Finisher {
  using T = Accumulator<S>;
  static constexpr int L = lanes<T>;
  const Finish<S> to;
  const Piecewise<T> piecewise;

  explicit Finisher(const Finish<S>& finish)
      : to(finish), piecewise(finish.activation, finish.parameter) {}

  // One vector, whose bits (one a lane) of the mask it returns where MASKED.
  template <bool MASKED = true>
  LAMINA_INLINE uint32_t put(Vector<T> z, int64_t offset, int count) const {
    if (to.residual != nullptr)
      z += count == L ? load(to.residual + offset) : load(to.residual + offset, count);
    if constexpr (K == Kind::piecewise) {
      store_lanes<T>(to.output + offset, piecewise.activate(z), count);
      return MASKED ? piecewise.kept(z) & ((1u << count) - 1) : 0;
    }
    if constexpr (K == Kind::smooth) {
      if (to.preactivation != nullptr) store_lanes<T>(to.preactivation + offset, z, count);
      z = activate_smooth<T>(to.activation, z);
    }
    store_lanes<T>(to.output + offset, z, count);
    return 0;
  }

  // Pixels side by side, `count` channels each.
  void by_pixel(const T* block, int64_t image, int64_t channel, int count, int64_t pixel,
                int64_t pixels) const {
    Vector<T> bias{};
    if (to.bias != nullptr) bias = load(to.bias + channel, count);
    for (int64_t p = 0; p < pixels; ++p) {
      const Vector<T> z = load(block + p * L) + bias;
      const uint32_t bits = put(z, to.layout.offset(image, channel, pixel + p), count);
      if (K == Kind::piecewise && to.mask != nullptr) {
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
      const bool masks = K == Kind::piecewise && to.mask != nullptr;
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
          const T shift = to.bias != nullptr ? load_element(to.bias + channel + c) : 0;
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
  with_kind(to.activation, [&](auto kind) {
    const Finisher<S, decltype(kind)::value> finisher(to);
    if (to.layout.channels_last)
      finisher.by_pixel(block, image, channel, count, pixel, pixels);
    else
      finisher.by_channel(block, image, channel, count, pixel, pixels);
  });
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

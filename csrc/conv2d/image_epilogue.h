#pragma once

#include "conv2d/finish.h"
#include "conv2d/finished_panel.h"
#include "conv2d/pixel_grid.h"

// Epilogues of the GEMM whose tiles are channels and pixels of images.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// The epilogue: finished tiles become output, through bias, residual and activation.
template <class S, Kind K>
struct FinishTile {
  using T = Accumulator<S>;
  const Finish<S>& to;
  const PixelGrid& grid;
  const Finishing<T> finishing;

  FinishTile(const Finish<S>& finish, const PixelGrid& of)
      : to(finish), grid(of), finishing(finishing_of(finish)) {}

  void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const {
    if (to.layout.channels_last)
      by_pixel(tile, row, rows, column, columns);
    else
      by_channel(tile, row, rows, column, columns);
  }

  // Columns that lie side by side in one image need no such detour.
  FinishedPanel<T> target_panel(int64_t column, int columns) const {
    if constexpr (micro_kernel_finishes) {
      const Layout& layout = to.layout;
      if (columns < tile_columns<T>) return {};
      if (layout.channels_last) return {to.output, layout.channels, column, column, &finishing};
      const PixelGrid::Run run = grid.run(column, columns);
      if (run.length == columns)
        return {to.output, layout.pixels, layout.offset(run.image, 0, run.pixel), column,
                &finishing};
    }
    return {};
  }

 private:
  static constexpr int L = lanes<T>;
  static constexpr bool micro_kernel_finishes = sizeof(S) == sizeof(T) && K != Kind::smooth;

  static Finishing<T> finishing_of(const Finish<S>& to) {
    const Piecewise<T> piecewise(to.activation, to.parameter);
    if constexpr (micro_kernel_finishes)
      return {to.bias, to.layout.channels_last, to.residual, K == Kind::piecewise, piecewise,
              to.mask, to.mask_stride};
    return {nullptr, false, nullptr, false, piecewise, nullptr, 0};
  }

  void by_pixel(const T* tile, int64_t pixel, int rows, int64_t channel, int columns) const {
    const Finisher<S, K> finisher(to);
    uint32_t bits[tile_rows<T>] = {};
    for (int j = 0; j < columns; j += L) {
      const int count = columns - j < L ? columns - j : L;
      Vector<T> bias{};
      if (to.bias != nullptr) bias = load(to.bias + channel + j, count);
      put_column(
          finisher, tile, rows, j, count, to.layout.offset(0, channel + j, pixel),
          to.layout.channels, [=](int) { return bias; }, bits);
    }
    store_bits(pixel, rows, channel, columns, bits);
  }

  void by_channel(const T* tile, int64_t channel, int rows, int64_t pixel, int columns) const {
    const Finisher<S, K> finisher(to);
    const Runs<T> runs(grid, pixel, columns);
    T bias[tile_rows<T>] = {};
    if (to.bias != nullptr)
      for (int i = 0; i < rows; ++i) bias[i] = load_element(to.bias + channel + i);
    uint32_t bits[tile_rows<T>] = {};
    for (int r = 0; r < runs.count; ++r) {
      const PixelGrid::Run& run = runs.run[r];
      put_column(
          finisher, tile, rows, runs.column[r], static_cast<int>(run.length),
          to.layout.offset(run.image, channel, run.pixel), to.layout.pixels,
          [&](int i) { return Vector<T>{} + bias[i]; }, bits);
    }
    store_bits(channel, rows, pixel, columns, bits);
  }

  // `count` lanes of every row from `column` on, to places `step` apart. What is the same for all
  // rows is decided before.
  template <class Bias>
  LAMINA_INLINE static void put_column(const Finisher<S, K>& finisher, const T* tile, int rows,
                                       int column, int count, int64_t offset, int64_t step,
                                       const Bias& bias, uint32_t* bits) {
    const bool masked = finisher.to.mask != nullptr;
    if (masked && count == L)
      put_rows<true>(finisher, tile + column, rows, column, L, offset, step, bias, bits);
    else if (masked)
      put_rows<true>(finisher, tile + column, rows, column, count, offset, step, bias, bits);
    else if (count == L)
      put_rows<false>(finisher, tile + column, rows, column, L, offset, step, bias, bits);
    else
      put_rows<false>(finisher, tile + column, rows, column, count, offset, step, bias, bits);
  }
  template <bool MASKED, class Bias>
  LAMINA_INLINE static void put_rows(const Finisher<S, K>& finisher, const T* sums, int rows,
                                     int column, int count, int64_t offset, int64_t step,
                                     const Bias& bias, uint32_t* bits) {
    for (int i = 0; i < rows; ++i, sums += tile_columns<T>, offset += step) {
      const uint32_t kept = finisher.template put<MASKED>(load(sums) + bias(i), offset, count);
      if (MASKED) bits[i] |= kept << column;
    }
  }

  // Tiles begin at multiples of 8: no other writes these bytes.
  void store_bits(int64_t row, int rows, int64_t first, int count, const uint32_t* bits) const {
    if (to.mask == nullptr) return;
    uint8_t* target = to.mask + row * to.mask_stride + first / 8;
    for (int i = 0; i < rows; ++i, target += to.mask_stride) {
      if (count == tile_columns<T>)
        store_bytes(target, tile_columns<T> / 8, bits[i]);
      else
        store_bytes(target, (count + 7) / 8, bits[i]);
    }
  }
  // Of a constant number of bytes GCC makes one store.
  LAMINA_INLINE static void store_bytes(uint8_t* target, int bytes, uint32_t bits) {
#pragma GCC unroll 4
    for (int byte = 0; byte < bytes; ++byte)
      target[byte] = static_cast<uint8_t>(bits >> (8 * byte));
  }
};

// The epilogue for the gradient of an input of which a stride left pixels out: zeros go there.
template <class S>
struct SpreadTile {
  using T = Accumulator<S>;
  S* target;
  Layout layout;
  const PixelGrid& grid;

  void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const {
    if (layout.channels_last) {
      for (int i = 0; i < rows; ++i) {
        const PixelGrid::Run run = grid.run(row + i, 1);
        each_vector(tile + i * tile_columns<T>, columns, [&](Vector<T> sum, int j, int count) {
          spread_channels(sum, run, column + j, count);
        });
      }
      return;
    }
    const Runs<T> runs(grid, column, columns);
    for (int i = 0; i < rows; ++i)
      runs.each(tile + i * tile_columns<T>, [&](Vector<T> sums, int, const PixelGrid::Run& run) {
        spread_pixels(sums, run, row + i);
      });
  }

 private:
  // A pixel goes with those below and to the right of it, up to the next.
  int64_t rows(int64_t y) const { return min64(grid.stride[0], grid.height - y); }
  int64_t columns(int64_t x, int64_t count) const {
    return min64(count * grid.stride[1], grid.width - x);
  }

  void spread_channels(Vector<T> sums, const PixelGrid::Run& run, int64_t channel,
                       int count) const {
    const int64_t y = run.pixel / grid.width, x = run.pixel % grid.width;
    for (int64_t dy = 0; dy < rows(y); ++dy) {
      for (int64_t dx = 0; dx < columns(x, 1); ++dx) {
        const int64_t pixel = run.pixel + dy * grid.width + dx;
        store_lanes<T>(target + layout.offset(run.image, channel, pixel),
                       dy == 0 && dx == 0 ? sums : Vector<T>{}, count);
      }
    }
  }

  void spread_pixels(Vector<T> sums, const PixelGrid::Run& run, int64_t channel) const {
    const int64_t y = run.pixel / grid.width, x = run.pixel % grid.width;
    S* const line = target + layout.offset(run.image, channel, run.pixel);
    const int64_t length = columns(x, run.length);
    for (int64_t dy = 1; dy < rows(y); ++dy) zero(line + dy * grid.width, length);
    if (grid.stride[1] == 2 && length == 2 * lanes<T>) {
      store_spread(line, sums);
      return;
    }
    S values[lanes<T>];
    store(values, sums);
    zero(line, length);
    for (int64_t p = 0; p < run.length; ++p) line[p * grid.stride[1]] = values[p];
  }

  static void zero(S* line, int64_t length) {
    int64_t p = 0;
    for (; p + lanes<T> <= length; p += lanes<T>) store(line + p, Vector<T>{});
    for (; p < length; ++p) line[p] = S{};
  }
  // A zero after each element.
  static void store_spread(S* line, Vector<T> sums) {
    constexpr int L = lanes<T>;
    Mask<T> low{}, high{};
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      low[i] = i % 2 == 0 ? i / 2 : L;
      high[i] = i % 2 == 0 ? L / 2 + i / 2 : L;
    }
    store(line, __builtin_shuffle(sums, Vector<T>{}, low));
    store(line + L, __builtin_shuffle(sums, Vector<T>{}, high));
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

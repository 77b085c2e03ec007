#pragma once

#include "common/activation.cuh"
#include "conv2d/conv_columns.cuh"

namespace lamina {

// Bias, residual and activation. In channels_last, rows are pixels and columns are channels;
// otherwise the other way round, and a row of pixels is cut into its images in memory. The filters'
// gradient takes it too, as images of one row.
template <typename T>
struct ConvEpilogue {
  using Number = accumulator_t<T>;

  ConvTaps taps;
  bool channels_last, dense;
  int64_t columns, channels, image_pixels;  // of all groups
  int64_t group_rows, group_columns;
  T* output;
  const T *bias, *residual;
  Activation activation;
  Number parameter;
  uint8_t* mask;
  T* preactivation;
  bool whole;  // Octets are contiguous and aligned.
  int64_t first_row = 0, first_column = 0;

  // `rows` and `columns` are those of one group.
  ConvEpilogue(const ConvOutputs& outputs, const ConvTaps& taps, int64_t rows, int64_t columns,
               int groups)
      : taps(taps),
        channels_last(outputs.channels_last),
        dense(taps.dense()),
        columns(channels_last ? columns * groups : columns),
        channels(channels_last ? columns * groups : rows * groups),
        image_pixels(taps.vertical.size * taps.horizontal.size),
        group_rows(channels_last ? 0 : rows),
        group_columns(channels_last ? columns : 0),
        output(static_cast<T*>(outputs.output)),
        bias(static_cast<const T*>(outputs.bias)),
        residual(static_cast<const T*>(outputs.residual)),
        activation(outputs.activation),
        parameter(static_cast<Number>(outputs.parameter)),
        mask(outputs.mask),
        preactivation(static_cast<T*>(outputs.preactivation)) {
    const int64_t run = channels_last ? this->columns : image_pixels;
    whole = is_aligned(output, run) && is_aligned(residual, run) &&
            is_aligned(preactivation, run) && run % octet == 0 && group_columns % octet == 0 &&
            (channels_last || dense);
  }

  __device__ void select(int group) {
    first_row = group * group_rows;
    first_column = group * group_columns;
  }

  __device__ int64_t offset(int64_t row, int64_t column) const {
    const int64_t pixel = channels_last ? row : column;
    if (channels_last && dense) return row * columns + column;
    int64_t image, place;
    if (dense) {
      const auto run = static_cast<unsigned>(image_pixels);
      image = static_cast<unsigned>(pixel) / run;
      place = static_cast<unsigned>(pixel) % run;
    } else {
      const GridPixel p(taps, pixel);
      const ConvAxis &vertical = taps.vertical, &horizontal = taps.horizontal;
      image = p.image;
      place = (vertical.first + p.y * vertical.stride) * horizontal.size + horizontal.first +
              p.x * horizontal.stride;
    }
    if (channels_last) return (image * image_pixels + place) * columns + column;
    return (image * channels + row) * image_pixels + place;
  }

  __device__ void load(const T* from, int64_t row, int64_t column, int count,
                       Number (&values)[octet]) const {
    if (whole) return load_octet(from + offset(row, column), 1, count, true, values);
#pragma unroll
    for (int i = 0; i < octet; ++i)
      values[i] = i < count ? widen(from[offset(row, column + i)]) : Number(0);
  }
  __device__ void store(T* to, int64_t row, int64_t column, int count,
                        const Number (&values)[octet]) const {
    if (whole) return store_octet(to + offset(row, column), count, true, values);
#pragma unroll
    for (int i = 0; i < octet; ++i)
      if (i < count) to[offset(row, column + i)] = narrow<T>(values[i]);
  }

  __device__ void operator()(int64_t group_row, int64_t group_column, Number (&z)[octet]) const {
    const int64_t row = first_row + group_row, column = first_column + group_column;
    const int64_t left = group_columns ? group_columns - group_column : columns - column;
    const int count = left < octet ? static_cast<int>(left) : octet;
    if (bias) {
#pragma unroll
      for (int i = 0; i < octet; ++i)
        if (i < count) z[i] += widen(bias[channels_last ? column + i : row]);
    }
    if (residual) {
      Number added[octet];
      load(residual, row, column, count, added);
#pragma unroll
      for (int i = 0; i < octet; ++i) z[i] += added[i];
    }
    if (mask) {
      unsigned kept = 0;
#pragma unroll
      for (int i = 0; i < octet; ++i)
        if (i < count && passes(activation, parameter, z[i])) kept |= 1u << i;
      mask[row * ceil_div<int64_t>(columns, octet) + column / octet] = static_cast<uint8_t>(kept);
    }
    if (preactivation) store(preactivation, row, column, count, z);
    activate(activation, parameter, z);
    store(output, row, column, count, z);
  }
};

}  // namespace lamina

#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/float_type.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace lamina {

struct LinearForward {
  FloatType type;
  int64_t m, n, k;
  const void* input;  // [m, k]
  int64_t input_row_stride, input_column_stride;
  const void* weight;  // [n, k]
  int64_t weight_row_stride, weight_column_stride;
  const void* bias;  // [n] dense, or null
  Activation activation;
  double parameter;
  void* output;         // [m, n] dense
  uint8_t* mask;        // [m, ceil(n / 8)], or null
  void* preactivation;  // [m, n] dense, or null
};

struct LinearBackward {
  FloatType type;
  int64_t m, n, k;
  const void* gradient;  // [m, n]
  int64_t gradient_row_stride, gradient_column_stride;
  const void* input;  // [m, k]
  int64_t input_row_stride, input_column_stride;
  const void* weight;  // [n, k]
  int64_t weight_row_stride, weight_column_stride;
  const void* saved;  // a mask [m, ceil(n / 8)], or values [m, n], dense
  Activation activation;
  double parameter;
  void* grad_input;   // [m, k] dense, or null
  void* grad_weight;  // [n, k], or [k, n] where grad_weight_transposed; dense, or null
  bool grad_weight_transposed;
  void* grad_bias;     // [n] dense, or null
  void* partial_sums;  // with grad_bias: [linear_sum_blocks(m), n] accumulators
};

}  // namespace lamina

LAMINA_KERNEL(void linear_forward(const LinearForward& args, const Parallel& parallel);
              void linear_backward(const LinearBackward& args, const Parallel& parallel);
              int64_t linear_sum_blocks(int64_t m);)

#pragma once

#include <cstdint>

#include "common/isa.h"
#include "squash/squash.h"

namespace lamina {

// Contiguous rows of `dim` floats, or doubles where `f64`. Forward: grad is null, output is v;
// backward: output is the gradient of the input.
struct SquashRows {
  bool f64;
  const void *input, *grad;
  void* output;
  int64_t rows, dim;
  SquashKind kind;
  double eps;
};

}  // namespace lamina

LAMINA_KERNEL(void squash_rows(const SquashRows& args);)

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/float_type.h"
#include "squash/squash.h"

namespace lamina {

// Over the rows of contiguous matrices.
void launch_squash_forward(FloatType type, SquashKind kind, double eps, const void* input,
                           int64_t rows, int64_t columns, void* output, cudaStream_t stream);
void launch_squash_backward(FloatType type, SquashKind kind, double eps, const void* grad,
                            const void* input, int64_t rows, int64_t columns, void* grad_input,
                            cudaStream_t stream);

}  // namespace lamina

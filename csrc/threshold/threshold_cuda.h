#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/float_type.h"

namespace lamina {

// Both walk n elements in the order of memory; a null mask is not written. `output` may be `input`.
void launch_threshold_forward(FloatType type, const void* input, void* output, uint8_t* mask,
                              int64_t n, double threshold, cudaStream_t stream);
void launch_threshold_backward(FloatType type, const void* grad, const uint8_t* mask,
                               void* grad_input, int64_t n, cudaStream_t stream);

}  // namespace lamina

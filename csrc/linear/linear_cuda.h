#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/activation.h"
#include "common/float_type.h"
#include "common/gemm_plan.h"

namespace lamina {

// An operand of C[i, j] = sum over k of A(i, k) B(j, k): the strides of i (or j) and of k.
struct GemmOperand {
  const void* data;
  int64_t outer_stride, depth_stride;
};

// What becomes of C. Pointers that are null are left out.
struct LinearOutputs {
  void* output;
  const void* bias;
  Activation activation;
  double parameter;
  uint8_t* mask;
  void* preactivation;
};

// For 16-bit types one stride of each operand is 1, and A's stride of k is if B's is.
// `partial` has room for plan.partial_sums() sums (f64 for f64, f32 otherwise).
void launch_linear_gemm(FloatType type, const GemmPlan& plan, const GemmOperand& a,
                        const GemmOperand& b, const LinearOutputs& outputs, void* partial,
                        cudaStream_t stream);

// dZ = dY act'(saved) and its column sums, the gradient of the bias, in one pass over dY. dZ is
// contiguous; both results are optional. dZ gets a pass of its own, not the GEMMs' prologues:
// dX and dW would each read dY, saved and compute act' once for every tile that needs them, and
// could not fetch their operands in the background; the pass costs about 3 % of the two GEMMs.
struct LinearGradZ {
  int64_t rows, columns;
  const void* grad;
  int64_t row_stride, column_stride;
  const void* saved;
  Activation activation;
  double parameter;
  void* grad_z;
  void* grad_bias;
  void* partial;  // grad_z_partial_sums() sums, if grad_bias is wanted
};
int64_t grad_z_partial_sums(int64_t rows, int64_t columns);
void launch_linear_grad_z(FloatType type, const LinearGradZ& args, cudaStream_t stream);

// result[column] = sum over i of partial[i, column], in fixed order; partial holds sums.
void launch_column_sums(FloatType type, const void* partial, int64_t count, int64_t columns,
                        void* result, cudaStream_t stream);

}  // namespace lamina

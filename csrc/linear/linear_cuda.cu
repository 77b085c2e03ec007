#include "common/activation.cuh"
#include "common/cuda_types.cuh"
#include "common/gemm.cuh"
#include "common/launch.h"
#include "linear/linear_cuda.h"

namespace lamina {
namespace {

// Bias and activation; the mask or the pre-activation are kept for the backward pass.
template <typename T>
struct LinearEpilogue {
  using Number = accumulator_t<T>;

  int64_t columns;
  T* output;
  const T* bias;
  Activation activation;
  Number parameter;
  uint8_t* mask;
  T* preactivation;
  bool aligned, bias_aligned;

  LinearEpilogue(int64_t columns, const LinearOutputs& outputs)
      : columns(columns),
        output(static_cast<T*>(outputs.output)),
        bias(static_cast<const T*>(outputs.bias)),
        activation(outputs.activation),
        parameter(static_cast<Number>(outputs.parameter)),
        mask(outputs.mask),
        preactivation(static_cast<T*>(outputs.preactivation)),
        aligned(is_aligned(output, columns) && is_aligned(preactivation, columns)),
        bias_aligned(is_aligned(bias, columns)) {}

  __device__ void select(int) const {}

  __device__ void operator()(int64_t row, int64_t column, Number (&z)[octet]) const {
    const int64_t left = columns - column;
    const int count = left < octet ? static_cast<int>(left) : octet;
    if (bias) {
      Number b[octet];
      load_octet(bias + column, 1, count, bias_aligned, b);
#pragma unroll
      for (int i = 0; i < octet; ++i) z[i] += b[i];
    }
    if (mask) {
      unsigned kept = 0;
#pragma unroll
      for (int i = 0; i < octet; ++i)
        if (i < count && passes(activation, parameter, z[i])) kept |= 1u << i;
      mask[row * ceil_div<int64_t>(columns, octet) + column / octet] = static_cast<uint8_t>(kept);
    }
    if (preactivation) store_octet(preactivation + row * columns + column, count, aligned, z);
    activate(activation, parameter, z);
    store_octet(output + row * columns + column, count, aligned, z);
  }
};

template <typename T, Major major>
MatrixOperand<T, major> matrix_operand(const GemmOperand& operand, int64_t outer) {
  return {static_cast<const T*>(operand.data),
          major == Major::depth ? operand.outer_stride : operand.depth_stride, outer};
}

template <typename T, Major major_a, Major major_b>
void launch_tensor_core(const GemmPlan& plan, const GemmOperand& a, const GemmOperand& b,
                        const LinearEpilogue<T>& epilogue, float* partial, cudaStream_t stream) {
  launch_gemm<TensorCore<T>>(plan, matrix_operand<T, major_a>(a, plan.rows),
                             matrix_operand<T, major_b>(b, plan.columns), epilogue, partial,
                             stream);
}

template <typename T>
void launch_typed_gemm(const GemmPlan& plan, const GemmOperand& a, const GemmOperand& b,
                       const LinearEpilogue<T>& epilogue, float* partial, cudaStream_t stream) {
  constexpr Major depth = Major::depth, outer = Major::outer;
  if (a.depth_stride != 1)
    launch_tensor_core<T, outer, outer>(plan, a, b, epilogue, partial, stream);
  else if (b.depth_stride != 1)
    launch_tensor_core<T, depth, outer>(plan, a, b, epilogue, partial, stream);
  else
    launch_tensor_core<T, depth, depth>(plan, a, b, epilogue, partial, stream);
}

template <typename T>
void launch_simt(const GemmPlan& plan, const GemmOperand& a, const GemmOperand& b,
                 const LinearEpilogue<T>& epilogue, T* partial, cudaStream_t stream) {
  const StridedOperand<T, Simt<T>::rows> a_operand{static_cast<const T*>(a.data), a.outer_stride,
                                                   a.depth_stride, plan.rows};
  const StridedOperand<T, Simt<T>::columns> b_operand{static_cast<const T*>(b.data), b.outer_stride,
                                                      b.depth_stride, plan.columns};
  launch_gemm<Simt<T>>(plan, a_operand, b_operand, epilogue, partial, stream);
}
void launch_typed_gemm(const GemmPlan& plan, const GemmOperand& a, const GemmOperand& b,
                       const LinearEpilogue<float>& epilogue, float* partial, cudaStream_t stream) {
  launch_simt(plan, a, b, epilogue, partial, stream);
}
void launch_typed_gemm(const GemmPlan& plan, const GemmOperand& a, const GemmOperand& b,
                       const LinearEpilogue<double>& epilogue, double* partial,
                       cudaStream_t stream) {
  launch_simt(plan, a, b, epilogue, partial, stream);
}

// A block takes 256 columns, an octet for each thread of a row, and a run of rows.
constexpr int row_threads = 32, column_threads = 8, block_columns = row_threads * octet;

int64_t rows_per_block(int64_t rows) {
  constexpr int64_t least = 64, most_blocks = 256;
  const int64_t wanted = ceil_div(rows, most_blocks);
  return wanted < least ? least : wanted;
}
int64_t row_blocks(int64_t rows) { return rows == 0 ? 1 : ceil_div(rows, rows_per_block(rows)); }

template <typename T>
struct GradZ {
  using Number = accumulator_t<T>;

  int64_t rows, columns, block_rows;
  const T* grad;
  int64_t row_stride, column_stride;
  const uint8_t* mask;
  const T* saved;
  Activation activation;
  Number parameter;
  T* grad_z;
  Number* partial;
  bool grad_aligned, aligned;
};

template <typename Number>
struct ColumnSums {
  Number sums[column_threads][block_columns];
};

template <typename T>
__global__ void __launch_bounds__(row_threads* column_threads) linear_grad_z_kernel(GradZ<T> args) {
  using Number = accumulator_t<T>;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * block_columns;
  const int64_t column = first_column + threadIdx.x * octet;
  const int64_t left = args.columns - column;
  const int count = left <= 0 ? 0 : left < octet ? static_cast<int>(left) : octet;
  const int64_t begin = blockIdx.y * args.block_rows;
  const int64_t end = begin + args.block_rows < args.rows ? begin + args.block_rows : args.rows;
  Number sums[octet] = {};
  for (int64_t row = begin + threadIdx.y; count && row < end; row += column_threads) {
    Number grad[octet], saved[octet] = {};
    unsigned kept = 0;
    load_octet(args.grad + row * args.row_stride + column * args.column_stride, args.column_stride,
               count, args.grad_aligned, grad);
    if (args.mask) kept = args.mask[row * ceil_div<int64_t>(args.columns, octet) + column / octet];
    if (args.saved)
      load_octet(args.saved + row * args.columns + column, 1, count, args.aligned, saved);
    differentiate(args.activation, args.parameter, kept, saved, grad);
    if (args.grad_z)
      store_octet(args.grad_z + row * args.columns + column, count, args.aligned, grad);
#pragma unroll
    for (int i = 0; i < octet; ++i) sums[i] += grad[i];
  }
  if (!args.partial) return;
  auto& shared = shared_memory<ColumnSums<Number>>();
#pragma unroll
  for (int i = 0; i < octet; ++i) shared.sums[threadIdx.y][threadIdx.x * octet + i] = sums[i];
  __syncthreads();
  const int mine = threadIdx.y * row_threads + threadIdx.x;
  if (first_column + mine >= args.columns) return;
  Number sum = 0;
#pragma unroll
  for (int i = 0; i < column_threads; ++i) sum += shared.sums[i][mine];
  args.partial[blockIdx.y * args.columns + first_column + mine] = sum;
}

// The sums of the columns of partial[count, columns], in fixed order.
template <typename T>
__global__ void __launch_bounds__(row_threads* column_threads)
    column_sums_kernel(const accumulator_t<T>* partial, int64_t count, int64_t columns, T* result) {
  using Number = accumulator_t<T>;
  struct Sums {
    Number sums[column_threads][row_threads];
  };
  const int64_t column = static_cast<int64_t>(blockIdx.x) * row_threads + threadIdx.x;
  Number sum = 0;
  if (column < columns)
    for (int64_t i = threadIdx.y; i < count; i += column_threads)
      sum += partial[i * columns + column];
  auto& shared = shared_memory<Sums>();
  shared.sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || column >= columns) return;
#pragma unroll
  for (int i = 1; i < column_threads; ++i) sum += shared.sums[i][threadIdx.x];
  result[column] = narrow<T>(sum);
}

}  // namespace

void launch_linear_gemm(FloatType type, const GemmPlan& plan, const GemmOperand& a,
                        const GemmOperand& b, const LinearOutputs& outputs, void* partial,
                        cudaStream_t stream) {
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    launch_typed_gemm(plan, a, b, LinearEpilogue<T>(plan.columns, outputs),
                      static_cast<accumulator_t<T>*>(partial), stream);
  });
}

void launch_column_sums(FloatType type, const void* partial, int64_t count, int64_t columns,
                        void* result, cudaStream_t stream) {
  if (columns == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Number = accumulator_t<T>;
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(columns, row_threads));
    LAMINA_LAUNCH(column_sums_kernel<T>, blocks, dim3(row_threads, column_threads),
                  sizeof(Number) * row_threads * column_threads, stream,
                  static_cast<const Number*>(partial), count, columns, static_cast<T*>(result));
  });
}

int64_t grad_z_partial_sums(int64_t rows, int64_t columns) { return row_blocks(rows) * columns; }

void launch_linear_grad_z(FloatType type, const LinearGradZ& args, cudaStream_t stream) {
  if (args.columns == 0) return;
  with_float_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Number = accumulator_t<T>;
    const auto* grad = static_cast<const T*>(args.grad);
    auto* grad_z = static_cast<T*>(args.grad_z);
    auto* partial = args.grad_bias ? static_cast<Number*>(args.partial) : nullptr;
    const bool by_mask = saves_mask(args.activation);
    const auto* mask = by_mask ? static_cast<const uint8_t*>(args.saved) : nullptr;
    const auto* saved = by_mask ? nullptr : static_cast<const T*>(args.saved);
    const GradZ<T> typed{args.rows,
                         args.columns,
                         rows_per_block(args.rows),
                         grad,
                         args.row_stride,
                         args.column_stride,
                         mask,
                         saved,
                         args.activation,
                         static_cast<Number>(args.parameter),
                         grad_z,
                         partial,
                         args.column_stride == 1 && is_aligned(grad, args.row_stride),
                         is_aligned(grad_z, args.columns) && is_aligned(saved, args.columns)};
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(args.columns, block_columns)),
                    static_cast<unsigned>(row_blocks(args.rows)));
    const dim3 block(row_threads, column_threads);
    LAMINA_LAUNCH(linear_grad_z_kernel<T>, grid, block, sizeof(ColumnSums<Number>), stream, typed);
    if (!partial) return;
    launch_column_sums(type, partial, row_blocks(args.rows), args.columns, args.grad_bias, stream);
  });
}

}  // namespace lamina

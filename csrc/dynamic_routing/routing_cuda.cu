#include "common/cuda_types.cuh"
#include "common/launch.h"
#include "dynamic_routing/routing_cuda.h"

namespace lamina {
namespace {

constexpr int lanes = 32, warps = 8, block_threads = lanes * warps;
constexpr int samples = 2;  // a lane's, so that a weight that was loaded serves 64 samples
constexpr int64_t group = lanes * samples;

template <typename Run>
void with_type(bool f64, const Run& run) {
  if (f64) return run(double{});
  run(float{});
}

unsigned blocks_for(int64_t work, int64_t per_block) {
  return static_cast<unsigned>(ceil_div(work, per_block));
}

template <typename T>
struct Links {
  const T* data;
  int64_t in_stride, out_stride, batch_stride;

  explicit Links(const RoutingLinks& links)
      : data(static_cast<const T*>(links.data)),
        in_stride(links.in_stride),
        out_stride(links.out_stride),
        batch_stride(links.batch_stride) {}

  __device__ T at(int64_t i, int64_t j, int64_t b, T otherwise) const {
    return data ? data[i * in_stride + j * out_stride + b * batch_stride] : otherwise;
  }
};

template <typename T>
__device__ void load_weights(const RoutingShape& shape, const T* weight, int64_t i, int64_t j,
                             int64_t d, int64_t e, T (&values)[octet]) {
  const int64_t capsule = j * shape.weight_capsules() + (shape.shared ? 0 : i);
  load_octet(weight + (capsule * shape.padded_in() + d) * shape.padded_out() + e, 1, octet, true,
             values);
}

// Elements e .. e + 7 of a vector of sample b; zeros where they don't exist.
template <typename T>
__device__ void load_vector(const RoutingShape& shape, const T* vectors, int64_t j, int64_t e,
                            int64_t b, T (&values)[octet]) {
#pragma unroll
  for (int k = 0; k < octet; ++k)
    values[k] = e + k < shape.out_dim && b < shape.batch
                    ? vectors[(j * shape.out_dim + e + k) * shape.batch + b]
                    : T(0);
}

// Where a block of lanes x warps threads works: groups of samples vary slowest.
struct Place {
  int64_t task, sample;
};
__device__ Place place_of(int64_t tasks, int64_t group_samples) {
  const int64_t task_blocks = ceil_div<int64_t>(tasks, warps);
  return {blockIdx.x % task_blocks * warps + threadIdx.y,
          blockIdx.x / task_blocks * group_samples + threadIdx.x};
}
unsigned place_blocks(int64_t tasks, int64_t batch, int64_t group_samples) {
  return static_cast<unsigned>(ceil_div<int64_t>(tasks, warps) * ceil_div(batch, group_samples));
}

template <typename T>
struct TransposeTile {
  T values[lanes][lanes + 1];
};

template <typename T>
__global__ void __launch_bounds__(block_threads)
    transpose_kernel(const T* from, int64_t rows, int64_t columns, T* to) {
  auto& tile = shared_memory<TransposeTile<T>>();
  from += blockIdx.y * rows * columns;
  to += blockIdx.y * rows * columns;
  const int64_t column_tiles = ceil_div<int64_t>(columns, lanes);
  const int64_t row = blockIdx.x / column_tiles * lanes;
  const int64_t column = blockIdx.x % column_tiles * lanes;
  for (int i = threadIdx.y; i < lanes; i += warps)
    if (row + i < rows && column + threadIdx.x < columns)
      tile.values[i][threadIdx.x] = from[(row + i) * columns + column + threadIdx.x];
  __syncthreads();
  for (int i = threadIdx.y; i < lanes; i += warps)
    if (column + i < columns && row + threadIdx.x < rows)
      to[(column + i) * rows + row + threadIdx.x] = tile.values[threadIdx.x][i];
}

struct WeightStrides {
  int64_t out, in, out_dim, in_dim;
};

template <typename T>
__global__ void __launch_bounds__(block_threads)
    pack_weight_kernel(RoutingShape shape, const T* weight, WeightStrides strides, T* packed) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  const int64_t e = index % shape.padded_out(), row = index / shape.padded_out();
  const int64_t d = row % shape.padded_in(), capsule = row / shape.padded_in();
  const int64_t i = capsule % shape.weight_capsules(), j = capsule / shape.weight_capsules();
  if (j >= shape.out_capsules) return;
  packed[index] =
      d < shape.in_dim && e < shape.out_dim
          ? weight[j * strides.out + i * strides.in + e * strides.out_dim + d * strides.in_dim]
          : T(0);
}

// A task is one out-capsule and a few in-capsules.
constexpr int agreement_run = 4;

template <typename T>
__global__ void __launch_bounds__(block_threads)
    agreement_kernel(RoutingShape shape, const T* u, const T* weight, const T* vectors,
                     Links<T> summand, Links<T> factor, T* links) {
  const int64_t runs = ceil_div<int64_t>(shape.in_capsules, agreement_run);
  const Place place = place_of(runs * shape.out_capsules, group);
  const int64_t first = place.task / shape.out_capsules * agreement_run;
  const int64_t j = place.task % shape.out_capsules;
  T sums[agreement_run][samples] = {};
  for (int64_t e = 0; vectors && e < shape.out_dim; e += octet) {
    T vector[samples][octet];
#pragma unroll
    for (int s = 0; s < samples; ++s)
      load_vector(shape, vectors, j, e, place.sample + s * lanes, vector[s]);
#pragma unroll
    for (int run = 0; run < agreement_run; ++run) {
      const int64_t i = first + run;
      if (i >= shape.in_capsules) break;
      T votes[samples][octet] = {};
      for (int64_t d = 0; d < shape.in_dim; ++d) {
        T w[octet];
        load_weights(shape, weight, i, j, d, e, w);
#pragma unroll
        for (int s = 0; s < samples; ++s) {
          const int64_t b = place.sample + s * lanes;
          const T x = b < shape.batch ? u[(i * shape.in_dim + d) * shape.batch + b] : T(0);
#pragma unroll
          for (int k = 0; k < octet; ++k) votes[s][k] += w[k] * x;
        }
      }
#pragma unroll
      for (int s = 0; s < samples; ++s)
#pragma unroll
        for (int k = 0; k < octet; ++k) sums[run][s] += votes[s][k] * vector[s][k];
    }
  }
#pragma unroll
  for (int run = 0; run < agreement_run; ++run)
#pragma unroll
    for (int s = 0; s < samples; ++s) {
      const int64_t i = first + run, b = place.sample + s * lanes;
      if (i >= shape.in_capsules || b >= shape.batch) continue;
      links[(i * shape.out_capsules + j) * shape.batch + b] =
          factor.at(i, j, b, 1) * (summand.at(i, j, b, 0) + sums[run][s]);
    }
}

// The links that share one softmax: those of an in-capsule, or those of an out-capsule. A block
// takes one such set for 32 samples, a link in turn for each of its warps.
struct LinkSet {
  int64_t i, j, in_step, out_step, count;

  __device__ LinkSet(const RoutingShape& shape, bool over_in, int64_t index)
      : i(over_in ? 0 : index),
        j(over_in ? index : 0),
        in_step(over_in),
        out_step(!over_in),
        count(over_in ? shape.in_capsules : shape.out_capsules) {}

  template <typename Step>
  __device__ void for_each(const Step& step) const {
    for (int64_t n = threadIdx.y; n < count; n += blockDim.y)
      step(i + n * in_step, j + n * out_step);
  }
};

template <typename T>
struct Reduction {
  T values[warps][lanes];

  // What `combine` makes of the values of the block's warps, lane by lane, in order.
  template <typename Combine>
  __device__ T across_warps(T value, const Combine& combine) {
    values[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    value = values[0][threadIdx.x];
    for (unsigned warp = 1; warp < blockDim.y; ++warp)
      value = combine(value, values[warp][threadIdx.x]);
    __syncthreads();
    return value;
  }
};

template <typename T>
__global__ void __launch_bounds__(block_threads)
    routing_softmax_kernel(RoutingShape shape, bool over_in, bool leaky, Links<T> mask, T* links) {
  auto& reduction = shared_memory<Reduction<T>>();
  const int64_t tiles = ceil_div<int64_t>(shape.batch, lanes);
  const int64_t b = blockIdx.x % tiles * lanes + threadIdx.x;
  const LinkSet set(shape, over_in, blockIdx.x / tiles);
  const bool exists = b < shape.batch;
  const auto at = [&](int64_t i, int64_t j) -> T& {
    return links[(i * shape.out_capsules + j) * shape.batch + b];
  };
  T largest = leaky ? T(0) : -INFINITY;
  if (exists) set.for_each([&](int64_t i, int64_t j) { largest = max(largest, at(i, j)); });
  largest = reduction.across_warps(largest, [](T x, T y) { return max(x, y); });
  T sum = 0;
  if (exists)
    set.for_each([&](int64_t i, int64_t j) {
      at(i, j) = exp(at(i, j) - largest);
      sum += at(i, j);
    });
  sum = reduction.across_warps(sum, [](T x, T y) { return x + y; });
  if (leaky) sum += exp(-largest);
  if (exists)
    set.for_each([&](int64_t i, int64_t j) { at(i, j) = at(i, j) / sum * mask.at(i, j, b, 1); });
}

template <typename T>
__global__ void __launch_bounds__(block_threads)
    routing_softmax_backward_kernel(RoutingShape shape, bool over_in, Links<T> mask, T* softmax,
                                    T* grad) {
  auto& reduction = shared_memory<Reduction<T>>();
  const int64_t tiles = ceil_div<int64_t>(shape.batch, lanes);
  const int64_t b = blockIdx.x % tiles * lanes + threadIdx.x;
  const LinkSet set(shape, over_in, blockIdx.x / tiles);
  const bool exists = b < shape.batch;
  const auto place = [&](int64_t i, int64_t j) {
    return (i * shape.out_capsules + j) * shape.batch + b;
  };
  T sum = 0;
  if (exists)
    set.for_each([&](int64_t i, int64_t j) { sum += softmax[place(i, j)] * grad[place(i, j)]; });
  sum = reduction.across_warps(sum, [](T x, T y) { return x + y; });
  if (exists)
    set.for_each([&](int64_t i, int64_t j) {
      T& coefficient = softmax[place(i, j)];
      T& value = grad[place(i, j)];
      value = coefficient * (value - sum);
      coefficient *= mask.at(i, j, b, 1);
    });
}

// A task is one out-capsule, eight of its dimensions, and a chunk of the in-capsules. The warps of
// a block share the chunk, hence u.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    weighted_sum_kernel(RoutingShape shape, const T* u, const T* weight, const T* links,
                        int64_t chunk, T* partial) {
  const int64_t octets = shape.padded_out() / octet, row = shape.out_capsules * octets;
  const Place place = place_of(row * ceil_div(shape.in_capsules, chunk), group);
  const int64_t part = place.task / row, begin = part * chunk;
  const int64_t j = place.task % row / octets, e = place.task % octets * octet;
  const int64_t end = begin + chunk < shape.in_capsules ? begin + chunk : shape.in_capsules;
  T sums[samples][octet] = {};
  for (int64_t i = begin; i < end; ++i) {
    T link[samples];
#pragma unroll
    for (int s = 0; s < samples; ++s) {
      const int64_t b = place.sample + s * lanes;
      link[s] = b < shape.batch ? links[(i * shape.out_capsules + j) * shape.batch + b] : T(0);
    }
    for (int64_t d = 0; d < shape.in_dim; ++d) {
      T w[octet];
      load_weights(shape, weight, i, j, d, e, w);
#pragma unroll
      for (int s = 0; s < samples; ++s) {
        const int64_t b = place.sample + s * lanes;
        if (b >= shape.batch) continue;
        const T x = link[s] * u[(i * shape.in_dim + d) * shape.batch + b];
#pragma unroll
        for (int k = 0; k < octet; ++k) sums[s][k] += w[k] * x;
      }
    }
  }
#pragma unroll
  for (int s = 0; s < samples; ++s)
#pragma unroll
    for (int k = 0; k < octet; ++k) {
      const int64_t b = place.sample + s * lanes;
      if (begin < shape.in_capsules && e + k < shape.out_dim && b < shape.batch)
        partial[((part * shape.out_capsules + j) * shape.out_dim + e + k) * shape.batch + b] =
            sums[s][k];
    }
}

template <typename T>
__global__ void __launch_bounds__(block_threads)
    sum_kernel(const T* parts, int64_t count, int64_t size, T scale, T* result) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (index >= size) return;
  T sum = 0;
#pragma unroll 8
  for (int64_t n = 0; n < count; ++n) sum += parts[n * size + index];
  result[index] = scale * sum;
}

// One warp a row.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    row_sums_kernel(const T* matrix, int64_t rows, int64_t columns, T* result) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.y;
  T sum = 0;
  if (row < rows)
    for (int64_t column = threadIdx.x; column < columns; column += lanes)
      sum += matrix[row * columns + column];
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (row < rows && threadIdx.x == 0) result[row] = sum;
}

// What follows a weighted sum: its partial sums are added, and squash, or its derivative, makes of
// them what the next step needs. A block takes one out-capsule of 32 samples, a warp every eighth
// of its dimensions; the length of a vector is what the warps tell each other.
template <typename T>
struct VectorStep {
  RoutingShape shape;
  const T* parts;
  int64_t count;
  SquashKind kind;
  T eps;

  // step(e, position) for each dimension of this thread's sample, batch last.
  template <typename Step>
  __device__ void for_each(const Step& step) const {
    if (sample() >= shape.batch) return;
    for (int64_t e = threadIdx.y; e < shape.out_dim; e += warps)
      step(e, (out() * shape.out_dim + e) * shape.batch + sample());
  }
  __device__ int64_t tiles() const { return ceil_div<int64_t>(shape.batch, lanes); }
  __device__ int64_t out() const { return blockIdx.x / tiles(); }
  __device__ int64_t sample() const { return blockIdx.x % tiles() * lanes + threadIdx.x; }
  // The same element, batch first.
  __device__ int64_t batch_first(int64_t e) const {
    return (sample() * shape.out_capsules + out()) * shape.out_dim + e;
  }

  __device__ T sum(int64_t at) const {
    T total = 0;
#pragma unroll 8
    for (int64_t n = 0; n < count; ++n) total += parts[n * shape.vectors() + at];
    return total;
  }
};

template <typename T>
struct ForwardOutputs {
  const T* bias;
  T *s, *saved, *output;
  const T* before;
  T* routed;
  T scale;
};

template <typename T>
__global__ void __launch_bounds__(block_threads)
    routing_forward_step_kernel(VectorStep<T> step, ForwardOutputs<T> to) {
  auto& reduction = shared_memory<Reduction<T>>();
  T q = 0;
  step.for_each([&](int64_t e, int64_t at) {
    const T s = step.sum(at) + (to.bias ? to.bias[step.out() * step.shape.out_dim + e] : T(0));
    to.s[at] = s;
    if (to.saved) to.saved[step.batch_first(e)] = s;
    q += s * s;
  });
  q = reduction.across_warps(q, [](T x, T y) { return x + y; });
  const T f = squash_factors(step.kind, q, step.eps).f;
  step.for_each([&](int64_t e, int64_t at) {
    const T v = f * to.s[at];
    if (to.output) to.output[step.batch_first(e)] = v;
    if (to.routed) to.routed[at] = (to.before ? to.before[at] : T(0)) + to.scale * v;
  });
}

template <typename T>
__global__ void __launch_bounds__(block_threads)
    routing_backward_step_kernel(VectorStep<T> step, T scale, bool keep, const T* s, T* grad_v,
                                 T* grad_s) {
  auto& reduction = shared_memory<Reduction<T>>();
  T q = 0, dot = 0;
  step.for_each([&](int64_t, int64_t at) {
    if (step.parts) grad_v[at] = (keep ? grad_v[at] : T(0)) + scale * step.sum(at);
    q += s[at] * s[at];
    dot += s[at] * grad_v[at];
  });
  const auto add = [](T x, T y) { return x + y; };
  q = reduction.across_warps(q, add);
  dot = reduction.across_warps(dot, add);
  const SquashFactors<T> factors = squash_factors(step.kind, q, step.eps);
  step.for_each(
      [&](int64_t, int64_t at) { grad_s[at] = factors.f * grad_v[at] + factors.h * dot * s[at]; });
}

// Elements e .. e + 7 of the gradient of the vote of i for j, in sample b.
template <typename T>
__device__ void add_grad_votes(const RoutingShape& shape, int terms, const T* links,
                               const T* vectors, int64_t i, int64_t j, int64_t e, int64_t b,
                               T (&grad)[octet]) {
  for (int t = 0; t < terms; ++t) {
    T vector[octet];
    load_vector(shape, vectors + t * shape.vectors(), j, e, b, vector);
    const T link = b < shape.batch
                       ? links[t * shape.links() + (i * shape.out_capsules + j) * shape.batch + b]
                       : T(0);
#pragma unroll
    for (int k = 0; k < octet; ++k) grad[k] += link * vector[k];
  }
}

// A task is one in-capsule and eight of its dimensions.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    routing_grad_u_kernel(RoutingShape shape, int terms, const T* links, const T* vectors,
                          const T* weight, T* grad_u) {
  const int64_t octets = shape.padded_in() / octet;
  const Place place = place_of(shape.in_capsules * octets, lanes);
  const int64_t i = place.task / octets, d = place.task % octets * octet, b = place.sample;
  if (i >= shape.in_capsules) return;
  T sums[octet] = {};
  for (int64_t j = 0; j < shape.out_capsules; ++j)
    for (int64_t e = 0; e < shape.out_dim; e += octet) {
      T grad[octet] = {};
      add_grad_votes(shape, terms, links, vectors, i, j, e, b, grad);
#pragma unroll
      for (int k = 0; k < octet; ++k) {
        T w[octet];
        load_weights(shape, weight, i, j, d + k, e, w);
#pragma unroll
        for (int n = 0; n < octet; ++n) sums[k] += w[n] * grad[n];
      }
    }
#pragma unroll
  for (int k = 0; k < octet; ++k)
    if (d + k < shape.in_dim && b < shape.batch)
      grad_u[(i * shape.in_dim + d + k) * shape.batch + b] = sums[k];
}

// Adds each of 64 values over the 32 lanes; lane n gets the sums of values 2n and 2n + 1. At each
// step a lane gives away the half of the values that its partner keeps.
template <int step = lanes / 2, typename T>
__device__ void sum_over_lanes(T (&values)[2 * lanes]) {
  const bool upper = threadIdx.x & step;
#pragma unroll
  for (int k = 0; k < 2 * step; ++k) {
    const T given = upper ? values[k] : values[k + 2 * step];
    const T kept = upper ? values[k + 2 * step] : values[k];
    values[k] = kept + __shfl_xor_sync(0xffffffffu, given, step);
  }
  if constexpr (step > 1) sum_over_lanes<step / 2>(values);
}

// A task is a run of in-capsules (one, unless the weight is shared), one out-capsule, and eight
// dimensions of each. The warps of a block share the in-capsules, hence u.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    routing_grad_weight_kernel(RoutingShape shape, int terms, const T* links, const T* vectors,
                               const T* u, int64_t run, T* grad_weight, WeightStrides strides) {
  const int64_t in_octets = shape.padded_in() / octet, out_octets = shape.padded_out() / octet;
  const int64_t row = shape.out_capsules * in_octets * out_octets;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.y;
  const int64_t part = task / row, begin = part * run;
  const int64_t end = begin + run < shape.in_capsules ? begin + run : shape.in_capsules;
  const int64_t d = task % in_octets * octet, e = task / in_octets % out_octets * octet;
  const int64_t j = task % row / (in_octets * out_octets);
  T sums[octet * octet] = {};
  for (int64_t i = begin; i < end; ++i)
    for (int64_t b = threadIdx.x; b < shape.batch; b += lanes) {
      T grad[octet] = {};
      add_grad_votes(shape, terms, links, vectors, i, j, e, b, grad);
#pragma unroll
      for (int k = 0; k < octet; ++k) {
        const T x = d + k < shape.in_dim ? u[(i * shape.in_dim + d + k) * shape.batch + b] : T(0);
#pragma unroll
        for (int n = 0; n < octet; ++n) sums[n * octet + k] += grad[n] * x;
      }
    }
  sum_over_lanes(sums);
  if (begin >= shape.in_capsules) return;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int index = 2 * threadIdx.x + n;
    const int64_t to_e = e + index / octet, to_d = d + index % octet;
    if (to_e < shape.out_dim && to_d < shape.in_dim)
      grad_weight[j * strides.out + part * strides.in + to_e * strides.out_dim +
                  to_d * strides.in_dim] = sums[n];
  }
}

// A chunk of in-capsules for each stage of a sum; enough chunks to fill a GPU with small layers.
constexpr int64_t most_chunks = 64;
int64_t chunk_of(const RoutingShape& shape) {
  return ceil_div(shape.in_capsules, most_chunks) > 0 ? ceil_div(shape.in_capsules, most_chunks)
                                                      : 1;
}

WeightStrides weight_strides(const int64_t (&strides)[4]) {
  return {strides[0], strides[1], strides[2], strides[3]};
}

const dim3 block(lanes, warps);

}  // namespace

int64_t routing_chunks(const RoutingShape& shape) {
  return ceil_div(shape.in_capsules, chunk_of(shape));
}

void launch_transpose(bool f64, const void* from, int64_t count, int64_t rows, int64_t columns,
                      void* to, cudaStream_t stream) {
  if (count * rows * columns == 0) return;
  with_type(f64, [&](auto zero) {
    using T = decltype(zero);
    const dim3 blocks(
        static_cast<unsigned>(ceil_div<int64_t>(rows, lanes) * ceil_div<int64_t>(columns, lanes)),
        static_cast<unsigned>(count));
    LAMINA_LAUNCH(transpose_kernel<T>, blocks, block, sizeof(TransposeTile<T>), stream,
                  static_cast<const T*>(from), rows, columns, static_cast<T*>(to));
  });
}

void launch_pack_weight(const RoutingShape& shape, const void* weight, const int64_t (&strides)[4],
                        void* packed, cudaStream_t stream) {
  if (shape.packed_weights() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(pack_weight_kernel<T>, blocks_for(shape.packed_weights(), block_threads),
                  block_threads, 0, stream, shape, static_cast<const T*>(weight),
                  weight_strides(strides), static_cast<T*>(packed));
  });
}

void launch_agreement(const RoutingShape& shape, const void* u, const void* weight,
                      const void* vectors, const RoutingLinks& summand, const RoutingLinks& factor,
                      void* links, cudaStream_t stream) {
  if (shape.links() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    const int64_t tasks = ceil_div<int64_t>(shape.in_capsules, agreement_run) * shape.out_capsules;
    LAMINA_LAUNCH(agreement_kernel<T>, place_blocks(tasks, shape.batch, group), block, 0, stream,
                  shape, static_cast<const T*>(u), static_cast<const T*>(weight),
                  static_cast<const T*>(vectors), Links<T>(summand), Links<T>(factor),
                  static_cast<T*>(links));
  });
}

namespace {

// Few links need no more than one warp.
dim3 softmax_block(const RoutingShape& shape, bool over_in) {
  return {lanes, (over_in ? shape.in_capsules : shape.out_capsules) > lanes ? warps : 1u};
}
unsigned softmax_blocks(const RoutingShape& shape, bool over_in) {
  return static_cast<unsigned>((over_in ? shape.out_capsules : shape.in_capsules) *
                               ceil_div<int64_t>(shape.batch, lanes));
}

}  // namespace

void launch_routing_softmax(const RoutingShape& shape, bool over_in, bool leaky,
                            const RoutingLinks& mask, void* links, cudaStream_t stream) {
  if (shape.links() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(routing_softmax_kernel<T>, softmax_blocks(shape, over_in),
                  softmax_block(shape, over_in), sizeof(Reduction<T>), stream, shape, over_in,
                  leaky, Links<T>(mask), static_cast<T*>(links));
  });
}

void launch_routing_softmax_backward(const RoutingShape& shape, bool over_in,
                                     const RoutingLinks& mask, void* softmax, void* grad,
                                     cudaStream_t stream) {
  if (shape.links() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(routing_softmax_backward_kernel<T>, softmax_blocks(shape, over_in),
                  softmax_block(shape, over_in), sizeof(Reduction<T>), stream, shape, over_in,
                  Links<T>(mask), static_cast<T*>(softmax), static_cast<T*>(grad));
  });
}

void launch_weighted_sum(const RoutingShape& shape, const void* u, const void* weight,
                         const void* links, void* partial, cudaStream_t stream) {
  const int64_t chunks = routing_chunks(shape);
  if (chunks * shape.vectors() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    const int64_t tasks = chunks * shape.out_capsules * (shape.padded_out() / octet);
    LAMINA_LAUNCH(weighted_sum_kernel<T>, place_blocks(tasks, shape.batch, group), block, 0, stream,
                  shape, static_cast<const T*>(u), static_cast<const T*>(weight),
                  static_cast<const T*>(links), chunk_of(shape), static_cast<T*>(partial));
  });
}

namespace {

unsigned vector_blocks(const RoutingShape& shape) {
  return static_cast<unsigned>(shape.out_capsules * ceil_div<int64_t>(shape.batch, lanes));
}

}  // namespace

void launch_routing_forward_step(const RoutingShape& shape, const RoutingSquash& squash,
                                 const void* partial, int64_t count, const RoutingForwardStep& to,
                                 cudaStream_t stream) {
  if (shape.vectors() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    const VectorStep<T> step{shape, static_cast<const T*>(partial), count, squash.kind,
                             static_cast<T>(squash.eps)};
    const ForwardOutputs<T> outputs{static_cast<const T*>(to.bias),   static_cast<T*>(to.s),
                                    static_cast<T*>(to.saved),        static_cast<T*>(to.output),
                                    static_cast<const T*>(to.before), static_cast<T*>(to.routed),
                                    static_cast<T>(to.scale)};
    LAMINA_LAUNCH(routing_forward_step_kernel<T>, vector_blocks(shape), block, sizeof(Reduction<T>),
                  stream, step, outputs);
  });
}

void launch_routing_backward_step(const RoutingShape& shape, const RoutingSquash& squash,
                                  const void* partial, double scale, bool keep, const void* s,
                                  void* grad_v, void* grad_s, cudaStream_t stream) {
  if (shape.vectors() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    const VectorStep<T> step{shape, static_cast<const T*>(partial), routing_chunks(shape),
                             squash.kind, static_cast<T>(squash.eps)};
    LAMINA_LAUNCH(routing_backward_step_kernel<T>, vector_blocks(shape), block,
                  sizeof(Reduction<T>), stream, step, static_cast<T>(scale), keep,
                  static_cast<const T*>(s), static_cast<T*>(grad_v), static_cast<T*>(grad_s));
  });
}

void launch_routing_grad_u(const RoutingShape& shape, int terms, const void* links,
                           const void* vectors, const void* weight, void* grad_u,
                           cudaStream_t stream) {
  if (shape.in_capsules * shape.in_dim * shape.batch == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    const int64_t tasks = shape.in_capsules * (shape.padded_in() / octet);
    LAMINA_LAUNCH(routing_grad_u_kernel<T>, place_blocks(tasks, shape.batch, lanes), block, 0,
                  stream, shape, terms, static_cast<const T*>(links),
                  static_cast<const T*>(vectors), static_cast<const T*>(weight),
                  static_cast<T*>(grad_u));
  });
}

void launch_routing_grad_weight(const RoutingShape& shape, int terms, const void* links,
                                const void* vectors, const void* u, void* grad_weight,
                                const int64_t (&strides)[4], cudaStream_t stream) {
  if (shape.in_capsules * shape.packed_weights() == 0) return;
  with_type(shape.f64, [&](auto zero) {
    using T = decltype(zero);
    const int64_t run = shape.shared ? chunk_of(shape) : 1;
    const int64_t tasks = ceil_div(shape.in_capsules, run) * shape.out_capsules *
                          (shape.padded_in() / octet) * (shape.padded_out() / octet);
    LAMINA_LAUNCH(routing_grad_weight_kernel<T>, blocks_for(tasks, warps), block, 0, stream, shape,
                  terms, static_cast<const T*>(links), static_cast<const T*>(vectors),
                  static_cast<const T*>(u), run, static_cast<T*>(grad_weight),
                  weight_strides(strides));
  });
}

void launch_sum(bool f64, const void* parts, int64_t count, int64_t size, double scale,
                void* result, cudaStream_t stream) {
  if (size == 0) return;
  with_type(f64, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(sum_kernel<T>, blocks_for(size, block_threads), block_threads, 0, stream,
                  static_cast<const T*>(parts), count, size, static_cast<T>(scale),
                  static_cast<T*>(result));
  });
}

void launch_row_sums(bool f64, const void* matrix, int64_t rows, int64_t columns, void* result,
                     cudaStream_t stream) {
  if (rows == 0) return;
  with_type(f64, [&](auto zero) {
    using T = decltype(zero);
    LAMINA_LAUNCH(row_sums_kernel<T>, blocks_for(rows, warps), block, 0, stream,
                  static_cast<const T*>(matrix), rows, columns, static_cast<T*>(result));
  });
}

}  // namespace lamina

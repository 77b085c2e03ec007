#include "dynamic_routing/routing_device.cuh"

namespace lamina {
namespace {

using namespace routing;

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

unsigned vector_blocks(const RoutingShape& shape) {
  return static_cast<unsigned>(shape.out_capsules * ceil_div<int64_t>(shape.batch, lanes));
}

}  // namespace

int64_t routing_chunks(const RoutingShape& shape) {
  return ceil_div(shape.in_capsules, chunk_of(shape));
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

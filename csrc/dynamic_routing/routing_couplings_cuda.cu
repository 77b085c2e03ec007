#include "dynamic_routing/routing_device.cuh"

namespace lamina {
namespace {

using namespace routing;

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

// Few links need no more than one warp.
dim3 softmax_block(const RoutingShape& shape, bool over_in) {
  return {lanes, (over_in ? shape.in_capsules : shape.out_capsules) > lanes ? warps : 1u};
}
unsigned softmax_blocks(const RoutingShape& shape, bool over_in) {
  return static_cast<unsigned>((over_in ? shape.out_capsules : shape.in_capsules) *
                               ceil_div<int64_t>(shape.batch, lanes));
}

}  // namespace

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

}  // namespace lamina

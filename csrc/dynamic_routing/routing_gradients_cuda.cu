#include "dynamic_routing/routing_device.cuh"

namespace lamina {
namespace {

using namespace routing;

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

}  // namespace

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

}  // namespace lamina

#include "common/ceil_div.h"
#include "common/launch.h"
#include "common/mma.cuh"

// A kernel that reverses every 64 floats by way of shared memory, and the bugs that the host shim
// must find in it.

namespace {

enum Bug {
  none,
  missing_barrier,
  shared_overrun,
  global_overrun,
  global_underrun,
  read_overrun,
  missing_wait,
  blocks_collide,
  divergent_barrier,
  misaligned_access,
  missing_warp_barrier,
};

constexpr int tile = 64;
struct Tile {
  float values[tile];
};

__global__ void reverse_kernel(const float* input, float* output, int n, Bug bug) {
  Tile& shared = lamina::shared_memory<Tile>();
  const int thread = threadIdx.x;
  const int first = blockIdx.x * tile;
  const int count = min(tile, n - first);
  if (bug == missing_wait || bug == misaligned_access) {
    if (thread < tile / 4)
      lamina::cp_async<16>(&shared.values[4 * thread],
                           input + first + 4 * thread + (bug == misaligned_access), 16);
    lamina::cp_async_commit();
  } else if (thread < count) {
    shared.values[thread + (bug == shared_overrun)] = input[first + thread + (bug == read_overrun)];
  }
  if (bug != missing_barrier) __syncthreads();
  if (bug == divergent_barrier && thread < 32) __syncthreads();
  if (bug == missing_warp_barrier) {
    shared.values[thread] += 1;
    shared.values[thread ^ 1] += 1;
  }
  int target = first + thread + (bug == global_overrun) - 2 * (bug == global_underrun);
  if (bug == blocks_collide) target = thread;
  if (thread < count) output[target] = shared.values[count - 1 - thread];
}

// Warp and block sums in every way that the shim knows.
__global__ void collectives_kernel(const int* input, int* output) {
  const int thread = threadIdx.x + blockDim.x * threadIdx.y, lane = thread % 32;
  const int mine = input[blockIdx.x * 64 + thread];
  int sum = mine;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  int up_to_me = mine;
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, up_to_me, step);
    if (lane >= step) up_to_me += before;
  }
  const int last = __shfl_sync(0xffffffffu, up_to_me, 31);
  const unsigned odd = __ballot_sync(0xffffffffu, mine % 2);
  const bool some = __any_sync(0xffffffffu, mine % 2), all = __all_sync(0xffffffffu, mine % 2);
  if (lane == 0) {
    atomicAdd(&output[0], sum);
    atomicAdd(&output[1], last);
    atomicAdd(&output[2], __popc(odd));
    atomicAdd(&output[3], static_cast<int>((odd != 0) == some && (odd == 0xffffffffu) == all));
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* host_shim_collectives(
    const int* input, int* output, int blocks) {
  host_grid::register_memory(input, blocks * 64 * sizeof(int), sizeof(int));
  host_grid::register_memory(output, 4 * sizeof(int), sizeof(int));
  LAMINA_LAUNCH(collectives_kernel, blocks, dim3(16, 4), 0, nullptr, input, output);
  host_grid::forget_memory();
  return cudaGetLastError() == cudaSuccess ? "" : cudaGetErrorString(cudaErrorLaunchFailure);
}

extern "C" __attribute__((visibility("default"))) const char* host_shim_planted(int bug,
                                                                                const float* input,
                                                                                float* output,
                                                                                int n) {
  host_grid::register_memory(input, n * sizeof(float), sizeof(float));
  host_grid::register_memory(output, n * sizeof(float), sizeof(float));
  LAMINA_LAUNCH(reverse_kernel, lamina::ceil_div(n, tile), tile, sizeof(Tile), nullptr, input,
                output, n, static_cast<Bug>(bug));
  host_grid::forget_memory();
  return cudaGetLastError() == cudaSuccess ? "" : cudaGetErrorString(cudaErrorLaunchFailure);
}

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Every kernel is launched through LAMINA_LAUNCH and takes its shared memory from
// shared_memory<Layout>(), so that the tests can run the same sources without a GPU.

namespace lamina {

#ifdef LAMINA_HOST_SHIM

#  define LAMINA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    host_grid::launch(#kernel, grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); })

template <typename Layout>
Layout& shared_memory() {
  return *reinterpret_cast<Layout*>(host_grid::shared_memory);
}

#else

// A kernel that wants more than 48 KB has to ask for it; it does so once a launch, which is cheap.
#  define LAMINA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                          \
    do {                                                                                         \
      if ((shared_bytes) > (48 << 10))                                                           \
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes); \
      kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);                                \
    } while (0)

extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];

template <typename Layout>
__device__ Layout& shared_memory() {
  return *reinterpret_cast<Layout*>(dynamic_shared_memory);
}

#endif

}  // namespace lamina

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// The PTX instructions that the tensor-core kernels need (sm_80 and up), as functions.

#ifdef LAMINA_HOST_SHIM
#  include <host_ptx.h>
#else

namespace lamina {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies `size` bytes to shared memory in the background: the first `bytes` of them from `global`,
// the rest zeros. Only copies of 16 bytes can bypass the L1 cache.
template <int size>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int bytes) {
  static_assert(size == 4 || size == 8 || size == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (size == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(size), "r"(bytes)
                 : "memory");
}

// Closes a group of copies. cp_async_wait<n>() waits until at most the n latest groups of this
// thread are still on their way; other threads see the data after a barrier.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int in_flight>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(in_flight) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i
// / 8. Word j of lane 4g + t gets row g, columns 2t and 2t + 1 of matrix j (of its transpose in
// _trans).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b for a 16 x 16, b 16 x 8 and c 16 x 8, in f32. Lane 4g + t holds
//   a: rows g (words 0, 2) and g + 8 (1, 3), columns 2t, 2t + 1 (0, 1) and 2t + 8, 2t + 9 (2, 3);
//   b: column g, rows 2t, 2t + 1 (word 0) and 2t + 8, 2t + 9 (word 1);
//   c: rows g (0, 1) and g + 8 (2, 3), columns 2t and 2t + 1.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16x8x16<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                           const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_16x8x16<__half>(float (&c)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace lamina

#endif

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "host_grid.h"

// What the PTX instructions of csrc/common/mma.cuh do, with the layouts of the PTX manual.

namespace lamina {

template <int size>
void cp_async(void* shared, const void* global, int bytes) {
  host_grid::copy_async(shared, global, bytes, size);
}
inline void cp_async_commit() { host_grid::commit_copies(); }
template <int in_flight>
inline void cp_async_wait() {
  host_grid::wait_copies(in_flight);
}

namespace host_ptx {
// Matrix i is the eight rows of 16 bytes whose addresses lanes 8i .. 8i + 7 give.
template <bool transposed>
void load_matrices(uint32_t (&fragment)[4], const void* row) {
  const host_grid::Package* rows = host_grid::exchange("ldmatrix", &row, sizeof(row));
  const int group = host_grid::lane() / 4, pair = host_grid::lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    uint16_t halves[2];
    for (int j = 0; j < 2; ++j) {
      const int r = transposed ? pair + j : group, c = transposed ? group : pair + j;
      const uint16_t* source;
      __builtin_memcpy(&source, rows[8 * i + r].bytes, sizeof(source));
      if (reinterpret_cast<uintptr_t>(source) % 16)
        host_grid::fail("ldmatrix: row address is not a multiple of 16");
      __builtin_memcpy(&halves[j], source + c, 2);
    }
    fragment[i] = halves[0] | static_cast<uint32_t>(halves[1]) << 16;
  }
}

inline float widen(__nv_bfloat16*, uint16_t bits) { return __bfloat162float({bits}); }
inline float widen(__half*, uint16_t bits) { return __half2float({bits}); }

inline uint16_t half_of(const host_grid::Package& package, int word, int half) {
  uint16_t bits;
  __builtin_memcpy(&bits, package.bytes + 4 * word + 2 * half, 2);
  return bits;
}
}  // namespace host_ptx

inline void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
  host_ptx::load_matrices<false>(fragment, row);
}
inline void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
  host_ptx::load_matrices<true>(fragment, row);
}

// A is 16 x 16: lane 4g + t holds rows g (words 0, 2) and g + 8 (words 1, 3), columns 2t, 2t + 1
// (words 0, 1) and 2t + 8, 2t + 9 (words 2, 3). B is 16 x 8: column g, rows 2t, 2t + 1 (word 0) and
// 2t + 8, 2t + 9 (word 1). C is 16 x 8: rows g (0, 1) and g + 8 (2, 3), columns 2t, 2t + 1.
template <typename T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t given[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const host_grid::Package* lanes = host_grid::exchange("mma", given, sizeof(given));
  const int group = host_grid::lane() / 4, pair = host_grid::lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const int row_word = i / 2, column = pair + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const int t = k % 8 / 2, upper = k / 8;
      const auto x = host_ptx::half_of(lanes[4 * group + t], row_word + 2 * upper, k % 2);
      const auto y = host_ptx::half_of(lanes[4 * column + t], 4 + upper, k % 2);
      T* type = nullptr;
      sum += host_ptx::widen(type, x) * host_ptx::widen(type, y);
    }
    c[i] += sum;
  }
}

}  // namespace lamina

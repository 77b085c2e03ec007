#pragma once

#include <cstddef>
#include <cstdint>

// The CPU stand-in for a GPU: it runs the grids of the project's own .cu files, one block after the
// other, the threads of a block as fibres that switch wherever a thread waits for others.
//
// Kernels are compiled with -fsanitize=thread, but linked with this runtime in place of the
// sanitizer's: every load and store then reports its address here, and is checked for
//   - bounds: of the block's shared memory, and of the tensors that were registered for the launch;
//   - races: two threads touch the same bytes, one of them writes, and no barrier lies between;
//   - cp.async destinations that are used before they were waited for.
// Shared memory is filled with NaN before each block, and threads run in a random order that is
// drawn again at every step. The first error ends the launch; cudaGetLastError() tells it.

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};

namespace host_grid {

// What the running thread reads as threadIdx, blockIdx, blockDim and gridDim.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;
extern unsigned char* shared_memory;

// Kernels may touch these bytes, and no other memory that they don't own. Accesses are told apart
// in steps of `granule` bytes: the size of an element, so that neighbours are never mixed up.
void register_memory(const void* begin, size_t bytes, size_t granule);
void forget_memory();

using Body = void (*)(const void* arguments);
void run_grid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body,
              const void* arguments);

template <typename Call>
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const Call& call) {
  run_grid(
      kernel, grid, block, shared_bytes,
      [](const void* arguments) { (*static_cast<const Call*>(arguments))(); }, &call);
}

void sync_block(int line);
void sync_warp(int line);

// What a lane hands to its warp in a shuffle, a vote or a matrix instruction. exchange() returns
// when all 32 lanes have come to the same instruction; [lane] is then what that lane gave.
struct Package {
  alignas(16) unsigned char bytes[32];
};
const Package* exchange(const char* instruction, const void* data, size_t bytes);
int lane();

// Ends the launch: the running thread does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void copy_async(void* shared, const void* global, int bytes, int filled);
void commit_copies();
void wait_copies(int groups_in_flight);

}  // namespace host_grid

#include "host_grid.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

#if !defined(__x86_64__)
#  error "the host shim's fibres are written for x86-64"
#endif

// Saves the callee's registers on the running stack, and goes on where the other stack was left.
extern "C" void host_grid_switch(void** leave, void* enter);
asm(R"(
.text
.globl host_grid_switch
.hidden host_grid_switch
.type host_grid_switch, @function
host_grid_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace host_grid {

uint3 thread_index, block_index;
dim3 block_size, grid_size;
unsigned char* shared_memory;

namespace {

constexpr size_t stack_bytes = 64 << 10;
constexpr size_t shared_limit = 227 << 10;  // what a block can have on sm_90
constexpr size_t guard_bytes = 64 << 10;    // around shared memory: an access here is out of bounds
constexpr int shared_shift = 2;             // kernels write shared memory in words
constexpr unsigned max_threads = 1024;

enum class State { ready, at_block_barrier, at_warp_barrier, finished };

struct Copy {
  void* to;
  const void* from;
  int bytes, filled;
};

struct Thread {
  State state;
  void* stack;
  unsigned id;
  const char* instruction;
  int line;
  unsigned exchanges;
  std::vector<Copy> copies;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  unsigned arrived, syncs;
  const char* instruction;
  int line;
};

// Who touched a granule of memory last. Epochs count barriers of blocks, through all launches;
// `syncs` counts those of the warp. Readers are kept for the last warp that read and one other.
struct Access {
  uint32_t epoch = 0, syncs = 0;
  uint16_t warp = 0;
  uint32_t lanes = 0;
};
struct Granule {
  Access write, read, other_read;
  bool in_flight = false;
};

struct Region {
  uintptr_t begin, end;
  int shift;  // of a byte's place to its granule's
  bool shared;
  std::vector<Granule> granules;
};

const char* kernel_name;
Body kernel_body;
const void* kernel_arguments;
Thread threads[max_threads];
Warp warps[max_threads / 32];
Package packages[max_threads / 32][2][32];
unsigned thread_count, arrived_at_block_barrier;
int block_barrier_line;
uint32_t epoch = 1, block_epoch, launch_epoch;
Thread* running;
void* scheduler_stack;
unsigned char* stacks;
uintptr_t launcher_frame;

Region shared_region;
std::vector<Region> regions;
std::mutex launch_mutex;
std::mt19937 random_order(1);
std::string failure;
cudaError_t last_error = cudaSuccess;
int dropped_barrier = 0;

bool inside(uintptr_t address, const void* begin, size_t bytes) {
  return address - reinterpret_cast<uintptr_t>(begin) < bytes;
}

// The runtime's and the kernels' own constants and variables lie in this library's segments.
struct Module {
  uintptr_t begin = ~uintptr_t{0}, end = 0;
  Module() { dl_iterate_phdr(visit, this); }
  static int visit(dl_phdr_info* info, size_t, void* self) {
    auto* module = static_cast<Module*>(self);
    uintptr_t begin = ~uintptr_t{0}, end = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      if (segment.p_type != PT_LOAD) continue;
      begin = std::min<uintptr_t>(begin, info->dlpi_addr + segment.p_vaddr);
      end = std::max<uintptr_t>(end, info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
    }
    const auto here = reinterpret_cast<uintptr_t>(&kernel_name);
    if (here < begin || here >= end) return 0;
    module->begin = begin;
    module->end = end;
    return 1;
  }
};

unsigned warp_of(const Thread& thread) { return thread.id / 32; }

void leave() { host_grid_switch(&running->stack, scheduler_stack); }

const char* region_name(const Region& region) { return region.shared ? "shared" : "global"; }

[[noreturn]] void fail_race(const Region& region, uintptr_t address, bool write,
                            const Access& earlier, bool earlier_write) {
  fail("race in %s memory: %s of byte %zu, without a barrier after its %s by warp %u (lanes %08x)",
       region_name(region), write ? "write" : "read", static_cast<size_t>(address - region.begin),
       earlier_write ? "write" : "read", earlier.warp, earlier.lanes);
}

// Whether `earlier` may be concurrent with what the running thread does now.
bool concurrent(const Region& region, const Access& earlier) {
  if (earlier.epoch < launch_epoch || !earlier.lanes) return false;
  if (earlier.epoch < block_epoch) return !region.shared;  // another block of this launch
  if (earlier.epoch < epoch) return false;
  if (earlier.warp != warp_of(*running)) return true;
  return earlier.syncs == warps[earlier.warp].syncs && (earlier.lanes & ~(1u << running->id % 32));
}

void note(Access& access) {
  const unsigned warp = warp_of(*running), syncs = warps[warp].syncs;
  if (access.epoch != epoch || access.warp != warp || access.syncs != syncs) access.lanes = 0;
  access.epoch = epoch;
  access.warp = static_cast<uint16_t>(warp);
  access.syncs = syncs;
  access.lanes |= 1u << running->id % 32;
}

void check_region(Region& region, uintptr_t address, size_t bytes, bool write, bool in_flight) {
  const size_t first = (address - region.begin) >> region.shift;
  const size_t last = (address + bytes - 1 - region.begin) >> region.shift;
  for (size_t i = first; i <= last; ++i) {
    Granule& granule = region.granules[i];
    const uintptr_t at = region.begin + (i << region.shift);
    if (granule.in_flight && granule.write.epoch >= block_epoch)
      fail("shared byte %zu is used before its cp.async was waited for",
           static_cast<size_t>(at - region.begin));
    if (concurrent(region, granule.write)) fail_race(region, at, write, granule.write, true);
    if (write) {
      if (concurrent(region, granule.read)) fail_race(region, at, true, granule.read, false);
      if (concurrent(region, granule.other_read))
        fail_race(region, at, true, granule.other_read, false);
      granule.write.lanes = 0;
      note(granule.write);
      granule.in_flight = in_flight;
    } else {
      if (granule.read.lanes && granule.read.warp != warp_of(*running))
        granule.other_read = granule.read;
      note(granule.read);
    }
  }
}

void check_access(const void* pointer, size_t bytes, bool write, bool in_flight = false) {
  if (!running || !bytes) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (inside(address, stacks, max_threads * stack_bytes)) return;
  if (inside(address, shared_memory - guard_bytes, shared_limit + 2 * guard_bytes)) {
    if (address < shared_region.begin || address + bytes > shared_region.end)
      fail("%s of %zu bytes at shared byte %td, outside of the %zu that the block has",
           write ? "write" : "read", bytes,
           static_cast<const unsigned char*>(pointer) - shared_memory,
           static_cast<size_t>(shared_region.end - shared_region.begin));
    return check_region(shared_region, address, bytes, write, in_flight);
  }
  for (Region& region : regions) {
    if (address < region.begin || address + bytes > region.end) continue;
    return check_region(region, address, bytes, write, false);
  }
  static const Module module;
  if (address >= module.begin && address < module.end) return;
  // Arguments of the kernel, captured where it was launched.
  if (!write && address - launcher_frame < (1 << 20)) return;
  const auto distance = [=](const Region& region) {
    return address < region.begin ? region.begin - address : address - region.end;
  };
  const Region* nearest = nullptr;
  for (const Region& region : regions)
    if (!nearest || distance(region) < distance(*nearest)) nearest = &region;
  if (nearest && distance(*nearest) < 4096)
    fail("%s of %zu bytes at %td in a tensor of %zu bytes", write ? "write" : "read", bytes,
         static_cast<ptrdiff_t>(address - nearest->begin),
         static_cast<size_t>(nearest->end - nearest->begin));
  fail("%s of %zu bytes at %p, which belongs to no tensor of this launch", write ? "write" : "read",
       bytes, pointer);
}

void check_aligned(const void* pointer, size_t bytes) {
  if (running && reinterpret_cast<uintptr_t>(pointer) % bytes)
    fail("access of %zu bytes at %p, which is not aligned to them", bytes, pointer);
}

void start_thread() {
  kernel_body(kernel_arguments);
  if (!running->copies.empty() || !running->groups.empty()) wait_copies(0);
  running->state = State::finished;
  leave();
}

void prepare(Thread& thread, unsigned id) {
  thread.id = id;
  thread.state = State::ready;
  thread.exchanges = 0;
  thread.copies.clear();
  thread.groups.clear();
  auto* top = reinterpret_cast<void**>(stacks + (id + 1) * stack_bytes);
  *--top = nullptr;  // a return address: the stack is aligned as at any function's entry
  *--top = reinterpret_cast<void*>(&start_thread);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack = top;
}

// Runs what can run, in random order, until all threads have finished.
void run_block() {
  block_epoch = ++epoch;
  arrived_at_block_barrier = 0;
  std::memset(shared_memory, 0xff, shared_region.end - shared_region.begin);
  for (unsigned i = 0; i < thread_count; ++i) prepare(threads[i], i);
  for (Warp& warp : warps) warp = {};
  std::vector<unsigned> order(thread_count);
  for (unsigned i = 0; i < thread_count; ++i) order[i] = i;
  for (bool progress = true; progress && failure.empty();) {
    progress = false;
    std::shuffle(order.begin(), order.end(), random_order);
    for (unsigned id : order) {
      Thread& thread = threads[id];
      if (thread.state != State::ready) continue;
      progress = true;
      running = &thread;
      thread_index = {id % block_size.x, id / block_size.x % block_size.y,
                      id / block_size.x / block_size.y};
      host_grid_switch(&scheduler_stack, thread.stack);
      running = nullptr;
      if (!failure.empty()) return;
    }
  }
  for (unsigned i = 0; i < thread_count; ++i) {
    if (threads[i].state == State::finished) continue;
    failure = std::string(kernel_name) + ": some threads wait at a barrier (line " +
              std::to_string(threads[i].line) + ") that others never reach";
    return;
  }
}

void wait_for_warp(const char* instruction, int line) {
  Warp& warp = warps[warp_of(*running)];
  if (warp.arrived && (warp.instruction != instruction || warp.line != line))
    fail("lanes of a warp meet at different instructions: %s and %s", warp.instruction,
         instruction);
  warp.instruction = instruction;
  warp.line = line;
  running->line = line;
  if (++warp.arrived < 32) {
    running->state = State::at_warp_barrier;
    return leave();
  }
  warp.arrived = 0;
  if (line) ++warp.syncs;
  Thread* lanes = threads + running->id / 32 * 32;
  for (int i = 0; i < 32; ++i)
    if (lanes[i].state == State::at_warp_barrier) lanes[i].state = State::ready;
}

bool valid_configuration(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t count = uint64_t{block.x} * block.y * block.z;
  return count && count <= max_threads && block.z <= 64 && grid.x && grid.y && grid.z &&
         grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 &&
         shared_bytes <= shared_limit;
}

}  // namespace

void register_memory(const void* begin, size_t bytes, size_t granule) {
  if (!bytes) return;
  const auto address = reinterpret_cast<uintptr_t>(begin);
  // What lay there before has been freed since.
  const auto overlaps = [=](const Region& region) {
    return region.begin < address + bytes && address < region.end;
  };
  regions.erase(std::remove_if(regions.begin(), regions.end(), overlaps), regions.end());
  const int shift = __builtin_ctzl(granule);
  regions.push_back(
      {address, address + bytes, shift, false, std::vector<Granule>(((bytes - 1) >> shift) + 1)});
}

void forget_memory() { regions.clear(); }

void fail(const char* format, ...) {
  char what[512], where[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof(what), format, arguments);
  va_end(arguments);
  std::snprintf(where, sizeof(where), " (thread %u,%u,%u of block %u,%u,%u)", thread_index.x,
                thread_index.y, thread_index.z, block_index.x, block_index.y, block_index.z);
  failure = std::string(kernel_name) + ": " + what + where;
  for (;;) leave();
}

void run_grid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body,
              const void* arguments) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  if (last_error != cudaSuccess) return;
  failure.clear();
  if (!valid_configuration(grid, block, shared_bytes)) {
    failure = std::string(kernel) + ": invalid grid, block or size of shared memory";
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (!stacks) {
    auto* memory = static_cast<unsigned char*>(
        mmap(nullptr, max_threads * stack_bytes + shared_limit + 2 * guard_bytes,
             PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    stacks = memory;
    shared_memory = memory + max_threads * stack_bytes + guard_bytes;
    // Epochs tell what earlier blocks did: nothing is ever cleared.
    shared_region = {0, 0, shared_shift, true, std::vector<Granule>(shared_limit >> shared_shift)};
  }
  const auto shared = reinterpret_cast<uintptr_t>(shared_memory);
  shared_region.begin = shared;
  shared_region.end = shared + shared_bytes;
  kernel_name = kernel;
  kernel_body = body;
  kernel_arguments = arguments;
  launcher_frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  block_size = block;
  grid_size = grid;
  thread_count = block.x * block.y * block.z;
  launch_epoch = ++epoch;
  if (thread_count % 32) failure = std::string(kernel) + ": only whole warps are modelled";
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x && failure.empty(); ++x) {
        block_index = {x, y, z};
        run_block();
      }
  if (!failure.empty()) last_error = cudaErrorLaunchFailure;
}

void sync_block(int line) {
  if (line == dropped_barrier) return;
  if (arrived_at_block_barrier && block_barrier_line != line)
    fail("threads of a block meet at different barriers: lines %d and %d", block_barrier_line,
         line);
  block_barrier_line = running->line = line;
  if (++arrived_at_block_barrier < thread_count) {
    running->state = State::at_block_barrier;
    return leave();
  }
  arrived_at_block_barrier = 0;
  ++epoch;
  for (unsigned i = 0; i < thread_count; ++i)
    if (threads[i].state == State::at_block_barrier) threads[i].state = State::ready;
}

void sync_warp(int line) {
  if (line != dropped_barrier) wait_for_warp("__syncwarp", line);
}

int lane() { return static_cast<int>(running->id % 32); }

// Two sets of packages take turns: a lane can be one exchange ahead of another, never two.
const Package* exchange(const char* instruction, const void* data, size_t bytes) {
  Package* set = packages[warp_of(*running)][running->exchanges++ % 2];
  std::memcpy(set[lane()].bytes, data, bytes);
  wait_for_warp(instruction, 0);
  return set;
}

// The copy is made as late as the program allows, when it is waited for; until then its target is
// NaN. So both a missing wait and a target that is still read are found.
void copy_async(void* shared, const void* global, int bytes, int filled) {
  check_aligned(shared, filled);
  check_aligned(global, filled);
  check_access(global, bytes, false);
  check_access(shared, filled, true, true);
  std::memset(shared, 0xff, filled);
  running->copies.push_back({shared, global, bytes, filled});
}

void commit_copies() {
  running->groups.push_back(std::move(running->copies));
  running->copies.clear();
}

void wait_copies(int groups_in_flight) {
  while (static_cast<int>(running->groups.size()) > groups_in_flight) {
    for (const Copy& copy : running->groups.front()) {
      const size_t offset = reinterpret_cast<uintptr_t>(copy.to) - shared_region.begin;
      for (size_t i = offset >> shared_shift; i < (offset + copy.filled) >> shared_shift; ++i)
        shared_region.granules[i].in_flight = false;
      check_access(copy.to, copy.filled, true);
      std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.filled - copy.bytes);
    }
    running->groups.pop_front();
  }
}

}  // namespace host_grid

cudaError_t cudaGetLastError() {
  const cudaError_t error = host_grid::last_error;
  host_grid::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t) { return host_grid::failure.c_str(); }

extern "C" {

// For tests: leave out the barrier on this line of every kernel (0: none), and draw other orders.
__attribute__((visibility("default"))) void host_grid_drop_barrier(int line) {
  host_grid::dropped_barrier = line;
}
__attribute__((visibility("default"))) void host_grid_seed(unsigned seed) {
  host_grid::random_order.seed(seed);
}

// What -fsanitize=thread calls.
#define HOST_GRID_ACCESS(bytes)                       \
  void __tsan_read##bytes(void* address) {            \
    host_grid::check_aligned(address, bytes);         \
    host_grid::check_access(address, bytes, false);   \
  }                                                   \
  void __tsan_write##bytes(void* address) {           \
    host_grid::check_aligned(address, bytes);         \
    host_grid::check_access(address, bytes, true);    \
  }                                                   \
  void __tsan_unaligned_read##bytes(void* address) {  \
    host_grid::check_access(address, bytes, false);   \
  }                                                   \
  void __tsan_unaligned_write##bytes(void* address) { \
    host_grid::check_access(address, bytes, true);    \
  }
HOST_GRID_ACCESS(1)
HOST_GRID_ACCESS(2)
HOST_GRID_ACCESS(4)
HOST_GRID_ACCESS(8)
HOST_GRID_ACCESS(16)
#undef HOST_GRID_ACCESS
void __tsan_read_range(void* address, size_t bytes) {
  host_grid::check_access(address, bytes, false);
}
void __tsan_write_range(void* address, size_t bytes) {
  host_grid::check_access(address, bytes, true);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"

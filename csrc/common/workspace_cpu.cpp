#include "common/workspace.h"

#if defined(__linux__)
#  include <sys/mman.h>
#endif

#include <cstdlib>
#include <new>

namespace lamina {
namespace {

struct Buffer {
  void* data = nullptr;
  std::size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void* workspace(std::size_t bytes) {
  constexpr std::size_t huge_page = 2 << 20;
  thread_local Buffer buffer;
  if (bytes > buffer.bytes) {
    std::free(buffer.data);
    buffer.bytes = 0;
    const std::size_t rounded = (bytes + huge_page - 1) / huge_page * huge_page;
    buffer.data = std::aligned_alloc(huge_page, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    madvise(buffer.data, rounded, MADV_HUGEPAGE);
#endif
    buffer.bytes = rounded;
  }
  return buffer.data;
}

}  // namespace lamina

#include <torch/csrc/stable/library.h>

#include "common/workspace.h"

#if defined(__linux__)
#  include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace lamina {
namespace {

struct Buffer {
  void* data = nullptr;
  std::size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

thread_local Buffer buffer;

int64_t release() { return static_cast<int64_t>(release_workspace()); }

}  // namespace

void* workspace(std::size_t bytes) {
  constexpr std::size_t huge_page = 2 << 20;
  if (bytes > buffer.bytes) {
    release_workspace();
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

std::size_t release_workspace() {
  std::free(buffer.data);
  buffer.data = nullptr;
  return std::exchange(buffer.bytes, 0);
}

STABLE_TORCH_LIBRARY_FRAGMENT(lamina, m) { m.def("release_workspace() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(lamina, CompositeExplicitAutograd, m) {
  m.impl("release_workspace", TORCH_BOX(&release));
}

}  // namespace lamina

#include <cstdlib>
#include <new>

#include "common/workspace.h"

namespace lamina {
namespace {

struct Buffer {
  void* data = nullptr;
  std::size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void* workspace(std::size_t bytes) {
  constexpr std::size_t page = 4096;
  thread_local Buffer buffer;
  if (bytes > buffer.bytes) {
    std::free(buffer.data);
    buffer.bytes = 0;
    const std::size_t rounded = (bytes + page - 1) / page * page;
    buffer.data = std::aligned_alloc(page, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  return buffer.data;
}

}  // namespace lamina

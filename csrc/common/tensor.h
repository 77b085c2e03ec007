#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#  include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "common/float_type.h"

// What every op's glue needs to know of a tensor, beside what torch::stable::Tensor offers.

namespace lamina {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline FloatType float_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return FloatType::f64;
    case ScalarType::Float:
      return FloatType::f32;
    case ScalarType::BFloat16:
      return FloatType::bf16;
    case ScalarType::Half:
      return FloatType::f16;
    default:
      STD_TORCH_CHECK(false, "expected a float64, float32, bfloat16 or float16 tensor");
  }
}

// A new uint8 tensor on the device of `like`; bit masks live in such tensors.
inline Tensor empty_bytes(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Byte);
}

// Asking first is cheaper: libtorch's own contiguous() is a call through the dispatcher.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Elements that fill a block of memory without gaps or overlaps, in whatever order of dimensions.
// Such a tensor can be walked as one flat array.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  std::vector<std::array<int64_t, 2>> dims;
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (tensor.size(d) != 1) dims.push_back({tensor.stride(d), tensor.size(d)});
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (auto [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

constexpr int64_t huge_page = 2 << 20;
struct HugePages {
  char* first = nullptr;
  int64_t count = 0;
};

// Asks for huge pages under a large fresh CPU allocation: its first touch is then one page fault
// for every 2 MB, not for every 4 kB. A hint only; nothing depends on it. Returns those asked for.
inline HugePages prefer_huge_pages(const Tensor& fresh) {
#if defined(__linux__)
  // Smaller blocks come back from the allocator with their pages in place (glibc's largest mmap
  // threshold is 32 MB): there is no first touch to save.
  constexpr uintptr_t page = huge_page, fresh_bytes = 32u << 20;
  const auto begin = reinterpret_cast<uintptr_t>(fresh.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(fresh.numel()) * fresh.element_size();
  const uintptr_t first = (begin + page - 1) & ~(page - 1);
  if (end - begin < fresh_bytes || end <= first) return {};
  const HugePages pages{reinterpret_cast<char*>(first), static_cast<int64_t>((end - first) / page)};
  madvise(pages.first, pages.count * page, MADV_HUGEPAGE);
  return pages;
#else
  (void)fresh;
  return {};
#endif
}

}  // namespace lamina

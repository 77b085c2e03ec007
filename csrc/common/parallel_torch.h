#pragma once

#include <torch/csrc/stable/ops.h>

#include "parallel.h"
#include "tensor.h"

namespace lamina {

// libtorch's threads (torch.set_num_threads applies); nested calls run serially.
inline Parallel torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int tasks, void (*body)(int, void*), void* context) {
            if (tasks == 1) return body(0, context);
            torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) {
              for (int64_t task = begin; task < end; ++task) body(static_cast<int>(task), context);
            });
          }};
}

// The first touch of pages whose contents do not matter yet, each by one thread. Where several
// threads write to all parts of a tensor, they would meet at every page: the system clears it once
// for each of them, and all wait.
inline void map_pages(const HugePages& pages, const Parallel& parallel) {
  parallel_for(parallel, static_cast<int>(pages.count),
               [&](int k) { *static_cast<volatile char*>(pages.first + k * huge_page) = 0; });
}

}  // namespace lamina

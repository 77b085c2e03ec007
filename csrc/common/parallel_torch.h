#pragma once

#include <torch/csrc/stable/ops.h>

#include "parallel.h"

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

}  // namespace lamina

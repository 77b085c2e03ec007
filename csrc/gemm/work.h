#pragma once

#include <cstdint>

// How work is shared out: rows to panels, items to threads.

namespace lamina {
namespace LAMINA_ISA {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows are dealt evenly over as few panels as cover them: 128 rows are 13, 13, ... 12, not 14,
// ... 2.
struct RowPanels {
  int64_t panels, base, longer;
  RowPanels(int64_t rows, int height)
      : panels(ceil_div(rows, height)), base(rows / panels), longer(rows % panels) {}
  int64_t first(int64_t panel) const { return panel * base + min64(panel, longer); }
  int count(int64_t panel) const { return static_cast<int>(base + (panel < longer)); }
};

// Work items are claimed in order, so whoever waits for an earlier item waits for one that some
// thread has already begun.
inline int64_t claim(int64_t* next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }
inline void finish(int64_t* counter) { __atomic_fetch_add(counter, 1, __ATOMIC_RELEASE); }
inline void wait_for(const int64_t* counter, int64_t value) {
  while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < value) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

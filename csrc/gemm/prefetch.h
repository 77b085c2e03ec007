#pragma once

#include <cstdint>

// Asking the caches for memory while the sums run. Operands and epilogues that can have a member
// `prefetch`; for those without one, these do nothing.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Sources go to the L2 only: they are packed after many tiles, which need the L1. GCC takes a
// function that does nothing but prefetch for one without effect and drops the calls of it, unless
// there is an asm in it.
inline void prefetch_to_l1(const void* address) {
  __builtin_prefetch(address);
  asm volatile("");
}
inline void prefetch_to_l2(const void* address) {
  __builtin_prefetch(address, 0, 2);
  asm volatile("");
}

// What pack<WIDTH> will read, with its arguments but the panel.
template <int WIDTH, class Operand>
inline auto prefetch_source(const Operand& operand, int64_t first, int count, int64_t depth,
                            int depths, int)
    -> decltype(operand.template prefetch<WIDTH>(first, count, depth, depths)) {
  operand.template prefetch<WIDTH>(first, count, depth, depths);
}
template <int WIDTH, class Operand>
inline void prefetch_source(const Operand&, int64_t, int, int64_t, int, long) {}

// What an epilogue will write.
template <class Epilogue>
inline auto prefetch_target(const Epilogue& epilogue, int64_t row, int rows, int64_t column, int)
    -> decltype(epilogue.prefetch(row, rows, column)) {
  epilogue.prefetch(row, rows, column);
}
template <class Epilogue>
inline void prefetch_target(const Epilogue&, int64_t, int, int64_t, long) {}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

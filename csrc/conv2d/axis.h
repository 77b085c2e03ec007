#pragma once

#include "gemm/gemm.h"

// The geometry of a convolution and of its transpose, direction by direction.

namespace lamina {
namespace LAMINA_ISA {
namespace {

// One direction of a convolution, or of its transpose: target pixel phase + i * phases is the sum
// over the taps of that phase of source pixel i * step + offset. A convolution has one phase and
// steps by its stride; its transpose has as many phases as the stride, and in each some of the
// taps.
struct Axis {
  int64_t phases, step, taps;
  const int64_t *first, *tap, *offset;  // taps of phase p: [first[p], first[p + 1])

  int64_t count(int64_t phase) const { return first[phase + 1] - first[phase]; }
  // Pixels of a phase among the targets before `past`.
  int64_t pixels(int64_t phase, int64_t past) const { return ceil_div(past - phase, phases); }
};

inline Axis make_axis(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                      bool transposed, int64_t* memory) {
  Axis axis{transposed ? stride : 1, transposed ? 1 : stride,     kernel, memory,
            memory + stride + 1,     memory + stride + 1 + kernel};
  int64_t *first = memory, *tap = first + stride + 1, *offset = tap + kernel, found = 0;
  for (int64_t phase = 0; phase < axis.phases; ++phase) {
    first[phase] = found;
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t distance = transposed ? phase + padding - k * dilation : k * dilation - padding;
      if (distance % axis.phases != 0) continue;
      tap[found] = k;
      offset[found++] = distance / axis.phases;
    }
  }
  first[axis.phases] = found;
  return axis;
}
inline int64_t axis_memory(int64_t kernel, int64_t stride) { return stride + 1 + 2 * kernel; }

// The smallest [begin, end) of source pixels that targets [from, past) reach.
struct Reach {
  int64_t begin, end;
};
inline Reach reach(const Axis& axis, int64_t from, int64_t past) {
  Reach all{0, 0};
  bool any = false;
  for (int64_t phase = 0; phase < axis.phases; ++phase) {
    const int64_t i0 = axis.pixels(phase, from), i1 = axis.pixels(phase, past);
    if (i0 >= i1) continue;
    for (int64_t t = axis.first[phase]; t < axis.first[phase + 1]; ++t) {
      const int64_t begin = i0 * axis.step + axis.offset[t];
      const int64_t end = (i1 - 1) * axis.step + axis.offset[t] + 1;
      all = {any && all.begin < begin ? all.begin : begin, any && all.end > end ? all.end : end};
      any = true;
    }
  }
  return all;
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

#pragma once

#include <cstddef>
#include <cstdint>

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Hands out consecutive pieces of the scratch; with a null base it only counts.
struct Arena {
  char* base;
  size_t used = 0;

  template <class T>
  void take(T*& piece, int64_t elements) {
    piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (static_cast<size_t>(elements) * sizeof(T) + 63) / 64 * 64;
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

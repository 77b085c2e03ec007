#pragma once

#include <cstddef>
#include <cstdint>

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Hands out consecutive pieces of scratch memory, each at a multiple of 64 bytes; with a null base
// it only counts.
struct Arena {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* const piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += bytes<T>(count);
    return piece;
  }
  template <class T>
  void take(T*& piece, int64_t count) {
    piece = take<T>(count);
  }
  template <class T>
  static int64_t bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

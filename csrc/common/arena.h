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

// A piece of the memory that each task has for itself.
template <class T>
struct TaskPiece {
  int64_t at = 0;
};

// The pieces of one task lie together, and those of the next well apart: a prefetcher that runs on
// past the end of what one task works on, across pages and by strides of many, would take lines
// away from another that works on them. Where cores share no cache that costs up to a third of a
// call.
struct TaskMemory {
  template <class T>
  void take(TaskPiece<T>& piece, int64_t count) {
    piece.at = used;
    used += Arena::bytes<T>(count);
  }
  // When all pieces have been taken.
  void place(Arena& arena, int64_t tasks) {
    constexpr int64_t least = 32 << 10, most = 1 << 20;
    const int64_t gap = used < least ? least : used < most ? used : most;
    step = used + gap;
    base = arena.take<char>(tasks * step);
  }
  template <class T>
  T* of(int task, const TaskPiece<T>& piece) const {
    return reinterpret_cast<T*>(base + task * step + piece.at);
  }

  char* base = nullptr;
  int64_t used = 0, step = 0;
};

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

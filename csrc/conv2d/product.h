#pragma once

#include "conv2d/finished_panel.h"
#include "gemm/gemm.h"

// The GEMM with its operands and epilogue behind pointers: it is compiled once for each type of
// sums, not for each combination of layout, type and activation. A call packs some thousand
// elements or finishes a tile, beside which its indirection is nothing.

namespace lamina {
namespace LAMINA_ISA {
namespace {

template <class T>
struct AnyOperand {
  using Pack = void (*)(const void* operand, T* panel, int64_t first, int count, int64_t depth,
                        int depths);
  using FindInPlace = InPlace<T> (*)(const void* operand, int64_t first, int count, int64_t depth,
                                     int depths);
  const void* operand;
  Pack pack_panel, panel_packed;
  void (*fetch)(const void* operand, int64_t first, int count, int64_t depth, int depths);
  FindInPlace find;  // or null

  template <int WIDTH>
  void pack(T* panel, int64_t first, int count, int64_t depth, int depths) const {
    pack_panel(operand, panel, first, count, depth, depths);
  }
  template <int WIDTH>
  void packed(const T* panel, int64_t first, int count, int64_t depth, int depths) const {
    panel_packed(operand, const_cast<T*>(panel), first, count, depth, depths);
  }
  template <int WIDTH>
  void prefetch(int64_t first, int count, int64_t depth, int depths) const {
    fetch(operand, first, count, depth, depths);
  }
  InPlace<T> in_place(int64_t first, int count, int64_t depth, int depths) const {
    if (find == nullptr) return {nullptr, 0, 0};
    return find(operand, first, count, depth, depths);
  }
};

// in_place of an operand that has it.
template <class T, class Operand>
auto find_in_place(int) -> decltype(static_cast<const Operand*>(nullptr)->in_place(0, 0, 0, 0),
                                    typename AnyOperand<T>::FindInPlace{}) {
  return [](const void* of, int64_t first, int count, int64_t depth, int depths) {
    return static_cast<const Operand*>(of)->in_place(first, count, depth, depths);
  };
}
template <class T, class Operand>
typename AnyOperand<T>::FindInPlace find_in_place(long) {
  return nullptr;
}

// `operand`, which must outlive the result, as the GEMM's A (WIDTH = tile_rows) or B.
template <class T, int WIDTH, class Operand>
AnyOperand<T> any_operand(const Operand& operand) {
  return {
      &operand,
      [](const void* of, T* panel, int64_t first, int count, int64_t depth, int depths) {
        static_cast<const Operand*>(of)->template pack<WIDTH>(panel, first, count, depth, depths);
      },
      [](const void* of, T* panel, int64_t first, int count, int64_t depth, int depths) {
        static_cast<const Operand*>(of)->template packed<WIDTH>(panel, first, count, depth, depths);
      },
      [](const void* of, int64_t first, int count, int64_t depth, int depths) {
        prefetch_source<WIDTH>(*static_cast<const Operand*>(of), first, count, depth, depths, 0);
      },
      find_in_place<T, Operand>(0)};
}

template <class T>
struct AnyEpilogue {
  using Prefetch = void (*)(const void* epilogue, int64_t row, int rows, int64_t column);
  using FindTarget = FinishedPanel<T> (*)(const void* epilogue, int64_t column, int columns);
  const void* epilogue;
  void (*finish)(const void* epilogue, const T* tile, int64_t row, int rows, int64_t column,
                 int columns);
  Prefetch fetch;   // or null
  FindTarget find;  // or null

  void operator()(const T* tile, int64_t row, int rows, int64_t column, int columns) const {
    finish(epilogue, tile, row, rows, column, columns);
  }
  void prefetch(int64_t row, int rows, int64_t column) const {
    if (fetch != nullptr) fetch(epilogue, row, rows, column);
  }
  FinishedPanel<T> target_panel(int64_t column, int columns) const {
    if (find == nullptr) return {};
    return find(epilogue, column, columns);
  }
};

// prefetch and target_panel of an epilogue that has them.
template <class T, class Epilogue>
auto find_prefetch(int) -> decltype(static_cast<const Epilogue*>(nullptr)->prefetch(0, 0, 0),
                                    typename AnyEpilogue<T>::Prefetch{}) {
  return [](const void* of, int64_t row, int rows, int64_t column) {
    static_cast<const Epilogue*>(of)->prefetch(row, rows, column);
  };
}
template <class T, class Epilogue>
typename AnyEpilogue<T>::Prefetch find_prefetch(long) {
  return nullptr;
}
template <class T, class Epilogue>
auto find_target_panel(int) -> decltype(static_cast<const Epilogue*>(nullptr)->target_panel(0, 0),
                                        typename AnyEpilogue<T>::FindTarget{}) {
  return [](const void* of, int64_t column, int columns) {
    return static_cast<const Epilogue*>(of)->target_panel(column, columns);
  };
}
template <class T, class Epilogue>
typename AnyEpilogue<T>::FindTarget find_target_panel(long) {
  return nullptr;
}

template <class T, class Epilogue>
AnyEpilogue<T> any_epilogue(const Epilogue& epilogue) {
  return {&epilogue,
          [](const void* of, const T* tile, int64_t row, int rows, int64_t column, int columns) {
            (*static_cast<const Epilogue*>(of))(tile, row, rows, column, columns);
          },
          find_prefetch<T, Epilogue>(0), find_target_panel<T, Epilogue>(0)};
}

template <class T, class A, class B, class Epilogue>
void multiply_any(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Epilogue& epilogue,
                  const Parallel& parallel, int pass_depth = blocking.depth) {
  gemm<T>(m, n, k, any_operand<T, tile_rows<T>>(a), any_operand<T, tile_columns<T>>(b),
          any_epilogue<T>(epilogue), parallel, pass_depth);
}

}  // namespace
}  // namespace LAMINA_ISA
}  // namespace lamina

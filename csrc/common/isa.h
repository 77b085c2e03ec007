#pragma once

#include <cstdlib>
#include <cstring>

// The kernels of an op are one source compiled once per instruction set; the choice is made at run
// time.
//   LAMINA_KERNEL(void f(int);)      declares f in every instruction set's namespace
//   LAMINA_DISPATCH(f)(arguments)    calls the best one that this CPU can run

namespace lamina {

enum class Isa { baseline, avx2, avx512 };

inline const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

// What this CPU runs. The environment's LAMINA_ISA=baseline|avx2|avx512 can lower it, never raise
// it.
inline Isa detect_isa() {
  Isa best = Isa::baseline;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::avx2;
  if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    best = Isa::avx512;
#endif
  const char* cap = std::getenv("LAMINA_ISA");
  if (cap == nullptr) return best;
  if (std::strcmp(cap, "baseline") == 0) return Isa::baseline;
  if (std::strcmp(cap, "avx2") == 0 && best > Isa::avx2) return Isa::avx2;
  return best;
}

inline Isa selected_isa() {
  static const Isa isa = detect_isa();
  return isa;
}

// Whether this CPU, as far as LAMINA_ISA allows, multiplies bf16 itself. Our kernels widen it to
// float32, which is half as fast as that.
inline bool multiplies_bf16() {
#if defined(__x86_64__)
  return selected_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace lamina

#if defined(__x86_64__)
#  define LAMINA_KERNEL(...) \
    namespace lamina {       \
    namespace baseline {     \
    __VA_ARGS__              \
    }                        \
    namespace avx2 {         \
    __VA_ARGS__              \
    }                        \
    namespace avx512 {       \
    __VA_ARGS__              \
    }                        \
    }
#  define LAMINA_DISPATCH(fn)                                                  \
    (::lamina::selected_isa() == ::lamina::Isa::avx512 ? &::lamina::avx512::fn \
     : ::lamina::selected_isa() == ::lamina::Isa::avx2 ? &::lamina::avx2::fn   \
                                                       : &::lamina::baseline::fn)
#else
#  define LAMINA_KERNEL(...) \
    namespace lamina {       \
    namespace baseline {     \
    __VA_ARGS__              \
    }                        \
    }
#  define LAMINA_DISPATCH(fn) (&::lamina::baseline::fn)
#endif

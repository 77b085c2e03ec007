#include "threshold/threshold_kernels.h"

#include "common/vec.h"

#if defined(__SSE2__)
#  include <immintrin.h>
#endif

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Eight elements share a byte of the mask, so eight elements are one step. A comparison of vectors
// gives lanes of all ones or all zeros; only packing those into bits differs between the ISAs.
template <class Float, class Lane, class Compared>
struct Octet {
  using number = Float;
  using lane = Lane;
  typedef Float floats __attribute__((vector_size(8 * sizeof(Float))));
  typedef Lane bits __attribute__((vector_size(8 * sizeof(Lane))));
  typedef Compared compared __attribute__((vector_size(8 * sizeof(Compared))));
  typedef bits unaligned __attribute__((aligned(1), may_alias));

  static bits load(const void* memory) { return *static_cast<const unaligned*>(memory); }
  static void store(void* memory, bits value) { *static_cast<unaligned*>(memory) = value; }
};

using F64 = Octet<double, int64_t, int64_t>;
using F32 = Octet<float, int32_t, int32_t>;

// 16-bit types are compared in float32, as torch does, and moved as the 16 bits they are.
struct BF16 : Octet<float, int16_t, int32_t> {
  static floats widen(bits x) {
    return reinterpret_cast<floats>(__builtin_convertvector(x, compared) << 16);
  }
};
struct F16 : Octet<float, int16_t, int32_t> {
  static floats widen(bits x) {
#if defined(__F16C__)
    return reinterpret_cast<floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(x)));
#else
    constexpr int parts = sizeof(floats) / sizeof(Vector<float>);
    HalfVector half[parts];
    Vector<float> wide[parts];
    __builtin_memcpy(half, &x, sizeof(x));
    for (int i = 0; i < parts; ++i) wide[i] = expand(half[i], float16{});
    floats values;
    __builtin_memcpy(&values, wide, sizeof(values));
    return values;
#endif
  }
};

inline F64::floats widen(F64, F64::bits x) { return reinterpret_cast<F64::floats>(x); }
inline F32::floats widen(F32, F32::bits x) { return reinterpret_cast<F32::floats>(x); }
inline BF16::floats widen(BF16, BF16::bits x) { return BF16::widen(x); }
inline F16::floats widen(F16, F16::bits x) { return F16::widen(x); }

// Lanes of the width of the stored element, all ones where bit i of `byte` is set.
template <class Type>
inline typename Type::bits expand(uint8_t byte) {
  const typename Type::bits select = {1, 2, 4, 8, 16, 32, 64, 128};
  return (static_cast<typename Type::lane>(byte) & select) != 0;
}

inline uint8_t pack(F32::bits lanes) {
#if defined(__AVX2__)
  return static_cast<uint8_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes)));
#elif defined(__SSE2__)
  __m128 half[2];
  __builtin_memcpy(half, &lanes, sizeof(lanes));
  return static_cast<uint8_t>(_mm_movemask_ps(half[0]) | _mm_movemask_ps(half[1]) << 4);
#else
  const F32::bits select = {1, 2, 4, 8, 16, 32, 64, 128};
  const F32::bits set = lanes & select;
  int byte = 0;
#  pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) byte |= set[i];
  return static_cast<uint8_t>(byte);
#endif
}
inline uint8_t pack(F64::bits lanes) { return pack(__builtin_convertvector(lanes, F32::bits)); }

template <class Type, bool stream>
inline void write(void* memory, typename Type::bits value) {
#if defined(__SSE2__)
  if constexpr (stream) {
    __m128i parts[sizeof(value) / 16];
    __builtin_memcpy(parts, &value, sizeof(value));
#  pragma GCC unroll 4
    for (unsigned i = 0; i < sizeof(value) / 16; ++i)
      _mm_stream_si128(static_cast<__m128i*>(memory) + i, parts[i]);
    return;
  }
#endif
  Type::store(memory, value);
}

template <class Type, bool stream>
void forward(const ThresholdForward& args) {
  constexpr int64_t size = sizeof(typename Type::lane);
  const auto* const input = static_cast<const char*>(args.input);
  auto* const output = static_cast<char*>(args.output);
  uint8_t* const mask = args.mask;  // A local: a store through `output` could change `args`.
  const auto limit = static_cast<typename Type::number>(args.threshold) + typename Type::floats{};
  const int64_t whole = args.n / 8 * 8;
  int64_t i = 0;
  for (; i < whole; i += 8) {
    const auto x = Type::load(input + i * size);
    const auto kept = ~(widen(Type{}, x) <= limit);
    write<Type, stream>(output + i * size, x & __builtin_convertvector(kept, typename Type::bits));
    if (mask) mask[i / 8] = pack(kept);
  }
  if (i == args.n) return;
  typename Type::bits last = {};
  __builtin_memcpy(&last, input + i * size, (args.n - i) * size);
  const auto kept = ~(widen(Type{}, last) <= limit);
  last &= __builtin_convertvector(kept, typename Type::bits);
  __builtin_memcpy(output + i * size, &last, (args.n - i) * size);
  if (mask) mask[i / 8] = pack(kept) & ((1 << (args.n - i)) - 1);
}

template <class Type, bool stream>
void backward(const ThresholdBackward& args) {
  constexpr int64_t size = sizeof(typename Type::lane);
  const auto* const grad = static_cast<const char*>(args.grad);
  auto* const grad_input = static_cast<char*>(args.grad_input);
  const uint8_t* const mask = args.mask;
  const int64_t whole = args.n / 8 * 8;
  int64_t i = 0;
  for (; i < whole; i += 8)
    write<Type, stream>(grad_input + i * size,
                        Type::load(grad + i * size) & expand<Type>(mask[i / 8]));
  if (i == args.n) return;
  typename Type::bits last = {};
  __builtin_memcpy(&last, grad + i * size, (args.n - i) * size);
  last &= expand<Type>(mask[i / 8]);
  __builtin_memcpy(grad_input + i * size, &last, (args.n - i) * size);
}

template <class Args, class Run>
void with_type(const Args& args, const Run& run) {
  switch (args.type) {
    case FloatType::f64:
      return run(F64{});
    case FloatType::f32:
      return run(F32{});
    case FloatType::bf16:
      return run(BF16{});
    case FloatType::f16:
      return run(F16{});
  }
}

// Streamed stores are not ordered with others: the fence makes them visible to the next reader.
inline void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace

void threshold_forward(const ThresholdForward& args) {
  with_type(args, [&](auto type) {
    if (!args.stream) return forward<decltype(type), false>(args);
    forward<decltype(type), true>(args);
    fence();
  });
}

void threshold_backward(const ThresholdBackward& args) {
  with_type(args, [&](auto type) {
    if (!args.stream) return backward<decltype(type), false>(args);
    backward<decltype(type), true>(args);
    fence();
  });
}

}  // namespace LAMINA_ISA
}  // namespace lamina

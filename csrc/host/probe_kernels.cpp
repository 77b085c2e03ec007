#include "host/probe_kernels.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// As many independent sums as the registers hold beside two operands: more than latency times
// throughput, which is what it takes to keep the units busy.
#if defined(LAMINA_ISA_avx512)
constexpr int width = 64, chains = 24;
#elif defined(LAMINA_ISA_avx2)
constexpr int width = 32, chains = 12;
#else
constexpr int width = 16, chains = 12;
#endif

template <class Float>
double multiply_add(long rounds, volatile double* sink) {
  typedef Float lanes __attribute__((vector_size(width)));
  constexpr int count = width / sizeof(Float);
  // Read through the sink: unknown to the compiler. Each sum converges to 1.
  const lanes factor = lanes{} + static_cast<Float>(*sink * 0.5 + 0.5);
  const lanes addend = lanes{} + static_cast<Float>(*sink * 0.5 + 0.5);
  lanes sums[chains];
#pragma GCC unroll 32
  for (int i = 0; i < chains; ++i) sums[i] = lanes{} + static_cast<Float>(i);
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < chains; ++i) sums[i] = sums[i] * factor + addend;
  }
  lanes total = {};
#pragma GCC unroll 32
  for (int i = 0; i < chains; ++i) total += sums[i];
  *sink = total[0] * 0;
  return 2.0 * rounds * chains * count;
}

}  // namespace

double multiply_add_f32(long rounds, volatile double* sink) {
  return multiply_add<float>(rounds, sink);
}

double multiply_add_f64(long rounds, volatile double* sink) {
  return multiply_add<double>(rounds, sink);
}

}  // namespace LAMINA_ISA
}  // namespace lamina

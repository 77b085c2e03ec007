#include "squash/squash_kernels.h"

namespace lamina {
namespace LAMINA_ISA {
namespace {

// Eight sums side by side: vector arithmetic without reordering what the compiler must not.
template <class T>
T dot(const T* a, const T* b, int64_t n) {
  constexpr int width = 8;
  T part[width] = {}, sum = T(0);
  int64_t k = 0;
  for (; k + width <= n; k += width)
#pragma GCC unroll 8
    for (int l = 0; l < width; ++l) part[l] += a[k + l] * b[k + l];
  for (; k < n; ++k) sum += a[k] * b[k];
#pragma GCC unroll 8
  for (int l = 0; l < width; ++l) sum += part[l];
  return sum;
}

template <class T>
void squash(const SquashRows& args) {
  const int64_t n = args.dim;
  for (int64_t row = 0; row < args.rows; ++row) {
    const T* s = static_cast<const T*>(args.input) + row * n;
    T* out = static_cast<T*>(args.output) + row * n;
    const SquashFactors<T> factors = squash_factors(args.kind, dot(s, s, n), T(args.eps));
    if (args.grad == nullptr) {
      for (int64_t k = 0; k < n; ++k) out[k] = factors.f * s[k];
    } else {
      const T* grad = static_cast<const T*>(args.grad) + row * n;
      const T along = factors.h * dot(s, grad, n);
      for (int64_t k = 0; k < n; ++k) out[k] = factors.f * grad[k] + along * s[k];
    }
  }
}

}  // namespace

void squash_rows(const SquashRows& args) { args.f64 ? squash<double>(args) : squash<float>(args); }

}  // namespace LAMINA_ISA
}  // namespace lamina

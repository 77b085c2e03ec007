#pragma once

// squash: v = f(q) s over the last dimension, q = |s|^2 (Sabour, Frosst, Hinton 2017). Shared by
// every device: the schema and the factors.

#if defined(__CUDACC__)
#  define LAMINA_SQUASH_FN static __host__ __device__ inline
#else
#  define LAMINA_SQUASH_FN static inline
#endif

namespace lamina {

// kind: "exact" | "sqrt_eps" | "norm_eps" | "exp"
constexpr char squash_forward_schema[] =
    "squash_forward(Tensor input, str kind, float eps) -> Tensor";
constexpr char squash_backward_schema[] =
    "squash_backward(Tensor grad, Tensor input, str kind, float eps) -> Tensor";

enum class SquashKind { exact, sqrt_eps, norm_eps, exp };

// From the name that Python has checked.
template <class String>
SquashKind squash_kind(const String& name) {
  return name == "exact"      ? SquashKind::exact
         : name == "sqrt_eps" ? SquashKind::sqrt_eps
         : name == "norm_eps" ? SquashKind::norm_eps
                              : SquashKind::exp;
}

// n = |s|. v = f s, and the gradient of s is f g + h <s, g> s with h = 2 df/dq = (df/dn) / n.
// At n = 0 the direction is undefined: h is 0 there, so nothing becomes NaN.
template <typename T>
struct SquashFactors {
  T f, h;
};

LAMINA_SQUASH_FN float squash_sqrt(float x) { return __builtin_sqrtf(x); }
LAMINA_SQUASH_FN double squash_sqrt(double x) { return __builtin_sqrt(x); }
LAMINA_SQUASH_FN float squash_expm1(float x) { return __builtin_expm1f(x); }
LAMINA_SQUASH_FN double squash_expm1(double x) { return __builtin_expm1(x); }

template <typename T>
LAMINA_SQUASH_FN SquashFactors<T> squash_factors(SquashKind kind, T q, T eps) {
  const T n = squash_sqrt(q), one = T(1) / (T(1) + q);
  if (n == T(0)) return {kind == SquashKind::exp && eps == T(0) ? T(1) : T(0), T(0)};
  switch (kind) {
    case SquashKind::exact:
      return {n * one, (T(1) - q) * one * one / n};
    case SquashKind::sqrt_eps: {
      const T m = squash_sqrt(q + eps);
      return {q * one / m, (T(2) * one - q / (m * m)) * one / m};
    }
    case SquashKind::norm_eps: {
      const T m = n + eps;
      return {q * one / m, (T(2) * one - n / m) * one / m};
    }
    default: {
      const T m = n + eps, rise = -squash_expm1(-n);
      return {rise / m, ((T(1) - rise) - rise / m) / (m * n)};
    }
  }
}

}  // namespace lamina

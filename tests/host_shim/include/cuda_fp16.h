#pragma once

#include "cuda_runtime.h"

struct alignas(2) __half {
  uint16_t bits;
} __attribute__((may_alias));

inline float __half2float(__half value) {
  _Float16 half;
  __builtin_memcpy(&half, &value.bits, 2);
  return static_cast<float>(half);
}
inline __half __float2half_rn(float value) {
  const auto half = static_cast<_Float16>(value);
  __half result;
  __builtin_memcpy(&result.bits, &half, 2);
  return result;
}

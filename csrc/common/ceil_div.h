#pragma once

#ifdef __CUDACC__
#  define LAMINA_HOST_DEVICE __host__ __device__
#else
#  define LAMINA_HOST_DEVICE
#endif

namespace lamina {

template <typename Integer>
LAMINA_HOST_DEVICE constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

}  // namespace lamina

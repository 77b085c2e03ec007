#pragma once

#include "common/isa.h"

// Fused multiply-adds in registers, nothing else: the arithmetic limit of one core. Each returns
// the floating-point operations it did; `sink` receives a value, so that no compiler can drop the
// work.
LAMINA_KERNEL(double multiply_add_f32(long rounds, volatile double* sink);)
LAMINA_KERNEL(double multiply_add_f64(long rounds, volatile double* sink);)

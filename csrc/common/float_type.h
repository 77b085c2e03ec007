#pragma once

namespace lamina {

// The element types that every op computes with.
enum class FloatType { f64, f32, bf16, f16 };

}  // namespace lamina

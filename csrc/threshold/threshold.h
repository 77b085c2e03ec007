#pragma once

#include <cstdint>

// y = x <= threshold ? 0 : x, with one bit kept for each element: bit i % 8 of mask byte i / 8 says
// that element i, in the order of memory, was kept. That bit is all the backward pass needs.
// threshold_forward_ writes y over its input and returns the bits.

namespace lamina {

constexpr char threshold_forward_schema[] =
    "threshold_forward(Tensor input, float threshold, bool save_mask) -> (Tensor, Tensor)";
constexpr char threshold_forward_in_place_schema[] =
    "threshold_forward_(Tensor(a!) input, float threshold, bool save_mask) -> Tensor";
constexpr char threshold_backward_schema[] =
    "threshold_backward(Tensor grad, Tensor mask) -> Tensor";

inline int64_t mask_bytes(int64_t elements) { return (elements + 7) / 8; }

}  // namespace lamina

#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>

#include "common/activation.h"
#include "common/tensor.h"

// What an op's glue demands of its arguments. Python has checked them in the words of its user;
// these are for callers of torch.ops, such as exported programs, in whose hands a wrong size would
// cost the heap. A name is as "conv2d: residual".

namespace lamina {

using Sizes = std::initializer_list<int64_t>;

template <class List>
std::string shown(const List& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

template <class List>
bool has_sizes(const Tensor& tensor, const List& sizes) {
  const auto given = tensor.sizes();
  return std::equal(given.begin(), given.end(), sizes.begin(), sizes.end());
}

template <class List = Sizes>
void check_sizes(const char* name, const Tensor& tensor, const List& sizes) {
  STD_TORCH_CHECK(has_sizes(tensor, sizes), name, " must have the sizes ", shown(sizes), ", got ",
                  shown(tensor.sizes()));
}

// A tensor that is computed with, beside `main`.
inline void check_alike(const char* name, const Tensor& tensor, const Tensor& main) {
  STD_TORCH_CHECK(tensor.scalar_type() == main.scalar_type() && tensor.device() == main.device(),
                  name, " must have the dtype and the device of the other tensors");
}

template <class List = Sizes>
void check_alike(const char* name, const Tensor& tensor, const Tensor& main, const List& sizes) {
  check_alike(name, tensor, main);
  check_sizes(name, tensor, sizes);
}

inline void check_contiguous(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline void check_dense(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(is_dense(tensor), name, " must fill its memory without gaps");
}

// What stands for an argument that the call has no use for.
inline void check_nothing(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.numel() == 0, name, " must be empty, got ", shown(tensor.sizes()));
}

template <class List = Sizes>
void check_mask(const char* name, const Tensor& mask, const Tensor& main, const List& sizes) {
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte && mask.device() == main.device(), name,
                  " must be uint8, on the device of the other tensors");
  check_sizes(name, mask, sizes);
  check_contiguous(name, mask);
}

inline Activation activation_named(const char* op, const std::string& name) {
  Activation activation;
  STD_TORCH_CHECK(parse_activation(name, activation), op, ": unknown activation '", name, "'");
  return activation;
}

inline void check_needs(const char* name, const std::vector<bool>& needs, size_t inputs) {
  STD_TORCH_CHECK(needs.size() == inputs, name, ": needs must have ", inputs, " elements, got ",
                  needs.size());
}

}  // namespace lamina

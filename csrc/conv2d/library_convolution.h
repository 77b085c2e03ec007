#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <array>
#include <optional>
#include <vector>

// torch's own convolution: on a GPU cuDNN's, with the algorithms and the precision that
// torch.backends.cudnn asks for.

namespace lamina {

using torch::stable::Tensor;

// An aten op's call by its name: `stack` has the arguments, and then the results.
template <size_t count>
void call_aten(const char* op, std::array<StableIValue, count>& stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
}

// Takes a result off the stack. With gradients enabled torch has recorded the call, but not what
// becomes of its result.
inline Tensor take_detached(StableIValue result) {
  const Tensor tensor = torch::stable::detail::to<Tensor>(result);
  if (!tensor.defined()) return tensor;
  std::array<StableIValue, 1> stack{torch::stable::detail::from(tensor)};
  call_aten("aten::detach", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

struct LibraryConvolution {
  const Tensor &input, &weight;
  const std::vector<int64_t>&stride, &padding, &dilation;
  int64_t groups;
  const std::vector<int64_t> output_padding = {0, 0};  // of a transposed one, which this is not

  Tensor forward() const {
    using torch::stable::detail::from;
    std::array<StableIValue, 9> stack{
        from(input),    from(weight), from(std::optional<Tensor>()), from(stride), from(padding),
        from(dilation), from(false),  from(output_padding),          from(groups)};
    call_aten("aten::convolution", stack);
    const Tensor sums = take_detached(stack[0]);
    STD_TORCH_CHECK(sums.scalar_type() == input.scalar_type(),
                    "conv2d: autocast lowers torch's convolution: call this op outside of it, or "
                    "with tensors of its dtype");
    return sums;
  }

  // The gradients of input and weight, undefined where they are not needed, and no other.
  std::array<Tensor, 3> backward(const Tensor& grad_z, bool needs_input, bool needs_weight) const {
    using torch::stable::detail::from;
    const bool needs[] = {needs_input, needs_weight, false};
    std::array<StableIValue, 11> stack{from(grad_z),
                                       from(input),
                                       from(weight),
                                       from(std::optional<std::vector<int64_t>>()),
                                       from(stride),
                                       from(padding),
                                       from(dilation),
                                       from(false),
                                       from(output_padding),
                                       from(groups),
                                       from(torch::headeronly::HeaderOnlyArrayRef<bool>(needs, 3))};
    call_aten("aten::convolution_backward", stack);
    return {take_detached(stack[0]), take_detached(stack[1]), take_detached(stack[2])};
  }
};

}  // namespace lamina

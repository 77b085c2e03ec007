#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#ifdef LAMINA_HOST_SHIM
#  include <host_grid.h>
#  define LAMINA_CUDA_NAMESPACE lamina_host
#  define LAMINA_CUDA_KEY CPU
#else
#  define LAMINA_CUDA_NAMESPACE lamina
#  define LAMINA_CUDA_KEY CUDA
// Weak, so that the library also loads where torch has no CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace lamina {

// One call of an op on the device and the current stream of `tensor`. Kernels get their pointers
// from it; check() reports what went wrong in the launches.
class CudaCall {
 public:
  explicit CudaCall(const torch::stable::Tensor& tensor) {
#ifndef LAMINA_HOST_SHIM
    const int32_t device = tensor.get_device_index();
    guard_.emplace(device);
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
#endif
  }
  CudaCall(const CudaCall&) = delete;
  CudaCall& operator=(const CudaCall&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Null for a tensor without elements.
  void* pointer(const torch::stable::Tensor& tensor) const {
    if (tensor.numel() == 0) return nullptr;
    void* data = tensor.data_ptr();
#ifdef LAMINA_HOST_SHIM
    int64_t last = 0;
    for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
    host_grid::register_memory(data, (last + 1) * tensor.element_size(), tensor.element_size());
#endif
    return data;
  }
  template <typename T>
  T* pointer(const torch::stable::Tensor& tensor) const {
    return static_cast<T*>(pointer(tensor));
  }

  void check() const {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
  }

#ifdef LAMINA_HOST_SHIM
  ~CudaCall() { host_grid::forget_memory(); }
#endif

 private:
#ifndef LAMINA_HOST_SHIM
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

}  // namespace lamina

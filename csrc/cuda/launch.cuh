// Around a launch: the device and stream of a tensor, fresh tensors, the launch and its error.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "../tensors.h"

namespace merc::cuda {

// Makes a tensor's device current while it stands, and knows the stream that its work goes to.
class Place {
 public:
  explicit Place(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    void* stream;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // Uninitialised and contiguous. Past the dispatcher, which takes a microsecond a tensor.
  Tensor empty(const std::vector<int64_t>& size, ScalarType type) const {
    std::vector<int64_t> strides(size.size());
    int64_t numel = 1;
    for (size_t d = size.size(); d-- > 0;) {
      strides[d] = numel;
      numel *= size[d] > 1 ? size[d] : 1;
    }
    const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(size.size()), size.data(), strides.data(), dtype, aoti_torch_device_type_cuda(), device_,
        &handle));
    return Tensor(handle);
  }

  int multiprocessors() const {
    int count;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_));
    return count;
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, const Place& place, const Arguments&... arguments) {
  kernel<<<grid, block, 0, place.stream()>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// With a T in dynamic shared memory, which may be more than the 48 KiB that need no asking.
template <class T, class... Parameters, class... Arguments>
void launch_with(
    void (*kernel)(Parameters...), dim3 grid, dim3 block, const Place& place, const Arguments&... arguments) {
  STD_CUDA_CHECK(cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(T)));
  kernel<<<grid, block, sizeof(T), place.stream()>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T>
__device__ __forceinline__ T& dynamic_shared() {
  extern __shared__ uint4 memory[];
  return *reinterpret_cast<T*>(memory);
}

}  // namespace merc::cuda

// Stands in for csrc/cuda/launch.cuh: CPU tensors, blocks in random order, fresh memory full of NaN.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <vector>

#include "../tensors.h"

namespace merc::cuda {

class Place {
 public:
  explicit Place(const Tensor&) {}

  Tensor empty(const std::vector<int64_t>& size, ScalarType type) const {
    std::vector<int64_t> strides(size.size());
    int64_t numel = 1;
    for (size_t d = size.size(); d-- > 0;) {
      strides[d] = numel;
      numel *= size[d] > 1 ? size[d] : 1;
    }
    const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
    AtenTensorHandle handle;
    aoti_torch_empty_strided(
        static_cast<int64_t>(size.size()), size.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0,
        &handle);
    Tensor tensor(handle);
    if (tensor.numel() > 0) {
      std::memset(tensor.mutable_data_ptr(), 0xff, tensor.numel() * tensor.element_size());
    }
    return tensor;
  }

  int multiprocessors() const { return 4; }
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, const Place&, const Arguments&... arguments) {
  on_host::grid_size = grid;
  on_host::block_size = block;
  on_host::run_grid([&] { kernel(arguments...); });
}

template <class T, class... Parameters, class... Arguments>
void launch_with(void (*kernel)(Parameters...), dim3 grid, dim3 block, const Place& place, const Arguments&... arguments) {
  static_assert(sizeof(T) <= on_host::kDynamicShared);
  on_host::dynamic_size = sizeof(T);
  launch(kernel, grid, block, place, arguments...);
  on_host::dynamic_size = 0;
}

template <class T>
T& dynamic_shared() {
  return *reinterpret_cast<T*>(on_host::dynamic_memory);
}

}  // namespace merc::cuda

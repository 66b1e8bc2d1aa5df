// What is asked of tensors, on every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace merc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_half(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

// What a kernel accumulates in and losses are returned in: float32, or float64 for float64.
inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::vector<int64_t> size_of(const Tensor& tensor) {
  const auto size = tensor.sizes();
  return {size.begin(), size.end()};
}

inline Tensor with_unit_stride(const Tensor& tensor) {
  return tensor.dim() > 0 && tensor.stride(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

template <class T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

// f(A()) for the type that is accumulated in.
template <class F>
auto with_accumulate(ScalarType accumulate, const F& f) {
  return accumulate == ScalarType::Double ? f(double()) : f(float());
}

}  // namespace merc

// Tensors as the kernels take them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "../checks.h"
#include "logits.cuh"

namespace merc::cuda {

inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Type::f64;
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::BFloat16:
      return Type::bf16;
    default:
      return Type::f16;
  }
}

inline Tensor with_unit_stride(const Tensor& tensor) {
  return tensor.dim() > 0 && tensor.stride(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline std::vector<int64_t> size_of(const Tensor& tensor) {
  const auto size = tensor.sizes();
  return {size.begin(), size.end()};
}

}  // namespace merc::cuda

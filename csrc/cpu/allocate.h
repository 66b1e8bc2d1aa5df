// Fresh contiguous CPU tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../tensors.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace merc::cpu {

// Asks for huge pages under [data, data + bytes), where that is large: its first writes then fault 512 times less.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr size_t kPage = 4096, kLarge = size_t{16} << 20;
  if (bytes >= kLarge) {
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
}

// Uninitialised. Past the dispatcher, which takes a microsecond a tensor.
inline Tensor empty(const std::vector<int64_t>& size, ScalarType type) {
  std::vector<int64_t> strides(size.size());
  int64_t numel = 1;
  for (size_t d = size.size(); d-- > 0;) {
    strides[d] = numel;
    numel *= size[d] > 1 ? size[d] : 1;
  }
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(size.size()), size.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

}  // namespace merc::cpu

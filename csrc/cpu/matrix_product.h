// Matrix products of tiles, by the BLAS that torch carries. Inside torch::stable::parallel_for each takes one thread.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace merc::cpu {

// A view of memory that somebody else owns, as a tensor.
template <class A>
class Matrix {
 public:
  Matrix(const A* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride = 1) {
    const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
        const_cast<A*>(data), 2, sizes, strides, 0,
        sizeof(A) == 8 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
        &handle_));
  }
  ~Matrix() { aoti_torch_delete_tensor_object(handle_); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  // this = a b, or this += a b
  void set_product(const Matrix& a, const Matrix& b) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(handle_, a.handle_, b.handle_));
  }
  void add_product(const Matrix& a, const Matrix& b) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(handle_, handle_, a.handle_, b.handle_, 1, 1));
  }

 private:
  AtenTensorHandle handle_;
};

}  // namespace merc::cpu

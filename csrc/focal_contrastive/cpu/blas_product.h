// Products of tiles by the BLAS that torch carries, where there is no product.h; included inside a namespace, hence no
// include guard. Inside torch::stable::parallel_for each takes one thread.

constexpr int kVector = 1;
constexpr std::nullptr_t transpose = nullptr;  // the BLAS takes right factors as they are

// A view of memory that somebody else owns, as a tensor.
template <class A>
class Matrix {
 public:
  Matrix(const A* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
    const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
        const_cast<A*>(data), 2, sizes, strides, 0,
        sizeof(A) == 8 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
        &handle_));
  }
  ~Matrix() { aoti_torch_delete_tensor_object(handle_); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  AtenTensorHandle handle() const { return handle_; }

 private:
  AtenTensorHandle handle_;
};

template <class A>
void multiply(int64_t rows, int64_t depth, int64_t columns, Left<A> a, Right<A> b, Product<A> c) {
  const Matrix<A> left(a.data, rows, depth, a.row, a.depth), right(b.data, depth, columns, b.depth, b.vector);
  const Matrix<A> product(c.data, rows, columns, c.stride, 1);
  TORCH_ERROR_CODE_CHECK(
      c.add ? aoti_torch_cpu_addmm_out(product.handle(), product.handle(), left.handle(), right.handle(), 1, 1)
            : aoti_torch_cpu_mm_out(product.handle(), left.handle(), right.handle()));
}

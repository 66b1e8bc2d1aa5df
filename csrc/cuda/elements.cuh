// Tensors as the kernels take them: elements of any float type in device memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "../tensors.h"

namespace merc::cuda {

enum class Type : int { f64, f32, bf16, f16 };

__host__ __device__ constexpr int bytes_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }

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

// Quotient without the slow 64-bit division where 32 bits hold both.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

// One row of a tensor, whose columns lie 1 apart; and of one to be written.
template <class Pointer>
struct RowOf {
  Pointer data;
  Type type;

  __device__ Pointer at(int column) const { return data + int64_t{column} * bytes_of(type); }
};
using Row = RowOf<const char*>;
using TargetRow = RowOf<char*>;

template <class A>
__device__ __forceinline__ A element(const char* at, Type type) {
  switch (type) {
    case Type::f64:
      return static_cast<A>(*reinterpret_cast<const double*>(at));
    case Type::f32:
      return static_cast<A>(*reinterpret_cast<const float*>(at));
    case Type::bf16:
      return static_cast<A>(__uint_as_float(uint32_t{*reinterpret_cast<const uint16_t*>(at)} << 16));
    default:
      return static_cast<A>(__half2float(__ushort_as_half(*reinterpret_cast<const uint16_t*>(at))));
  }
}

__device__ __forceinline__ uint16_t half_bits(float value, Type type) {
  return type == Type::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(value))
                            : __half_as_ushort(__float2half_rn(value));
}

template <class A>
__device__ __forceinline__ void put_element(char* at, Type type, A value) {
  switch (type) {
    case Type::f64:
      *reinterpret_cast<double*>(at) = value;
      break;
    case Type::f32:
      *reinterpret_cast<float*>(at) = static_cast<float>(value);
      break;
    default:
      *reinterpret_cast<uint16_t*>(at) = half_bits(static_cast<float>(value), type);
  }
}

}  // namespace merc::cuda

// As much of CUDA as the kernels use, on the CPU: every thread of a block is a fiber (fibers.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) double2 {
  double x, y;
};

#include "fibers.h"

#define threadIdx on_host::now->thread
#define blockIdx on_host::now->block
#define blockDim on_host::block_size
#define gridDim on_host::grid_size

#define __syncthreads() on_host::synchronize(__FILE__, __LINE__)
inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int mask) {
  return on_host::shuffle(value, (on_host::now->current % 32) ^ mask);
}
inline uint32_t __shfl_sync(unsigned, uint32_t value, int lane) { return on_host::shuffle(value, lane); }
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* at, unsigned most) {
  unsigned old = __atomic_load_n(at, __ATOMIC_RELAXED), next;
  do {
    next = old >= most ? 0 : old + 1;
  } while (!__atomic_compare_exchange_n(at, &old, next, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return old;
}

template <class T>
T __ldg(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) {
    std::fprintf(stderr, "cuda_on_host: a load that is not aligned\n");
    std::abort();
  }
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T value) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) {
    std::fprintf(stderr, "cuda_on_host: a store that is not aligned\n");
    std::abort();
  }
  *at = value;
}
template <class T>
void __stcg(T* at, T value) {
  *at = value;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

using __half = _Float16;
inline __half __ushort_as_half(uint16_t bits) {
  __half value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint16_t __half_as_ushort(__half value) {
  uint16_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) {
    return {0x7fff};
  }
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

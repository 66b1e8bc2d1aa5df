// A 64 x 64 tile of the products S = X Y^T and out += M Y (tile_product.cuh): how it lies in shared memory, and what
// its elements become for the tensor cores.
//
// E, what X and Y are stored in:
//   Bf16, F16  S from exact products; M as tf32, which has float32's range: a row's weight in M may be tiny. Beside F16
//              its rounding would show: M = high + low
//   float      x = high + low, both tf32: three products, all but low low. They are summed outside of the tensor cores
//              every 8 elements, as those cut off what does not fit where others round.
//   double     as it is
//
// D is taken in chunks that fit into shared memory, zeros behind the last column up to a multiple of 16 and behind the
// last row. A lane has g = lane / 4 and t = lane % 4, as in tensor_core.cuh. Strides are such that no two lanes meet in
// a bank: 4 words beyond a multiple of 32 for X and Y (8: double), 8 for S.
#pragma once

#include <cstdint>

#include "../../cuda/elements.cuh"
#include "../../cuda/reduce.cuh"
#include "tensor_core.cuh"

namespace merc::focal_contrastive::cuda {

using namespace merc::cuda;

constexpr int kTile = 64;
constexpr int kTileThreads = 256;

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

template <class E>
struct Engine {
  using A = float;
  static constexpr int kChunk = 512 / sizeof(E), kStride = 512 + 16;  // elements, bytes
  static constexpr int kOutChunks = sizeof(E) / 2;                    // 256 columns of out in registers
  static constexpr int kOutWarpRows = 32, kScoreStride = kTile + 8;
};

template <>
struct Engine<double> {
  using A = double;
  static constexpr int kChunk = 32, kStride = 256 + 32;
  static constexpr int kOutChunks = 4;  // 128 columns
  static constexpr int kOutWarpRows = 16, kScoreStride = kTile + 4;
};

// The dynamic shared memory of a block.
template <class E>
struct TileMemory {
  alignas(16) char rows[kTile * Engine<E>::kStride];
  alignas(16) char columns[kTile * Engine<E>::kStride];
  alignas(16) typename Engine<E>::A scores[kTile * Engine<E>::kScoreStride];  // then M
};

// Floats as two tf32 each.
template <int n>
struct Parts {
  uint32_t high[n], low[n];

  __device__ __forceinline__ void set(int i, float x) {
    high[i] = to_tf32(x);
    low[i] = to_tf32(x - __uint_as_float(high[i]));
  }
};

__device__ __forceinline__ void multiply_parts(float (&c)[4], const Parts<4>& a, const Parts<2>& b) {
  float part[4] = {};
  multiply_tf32(part, a.low, b.high);
  multiply_tf32(part, a.high, b.low);
  multiply_tf32(part, a.high, b.high);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    c[i] += part[i];
  }
}

// Two neighbours in a row.
__device__ __forceinline__ float2 neighbours(const Bf16* at) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(at);
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
__device__ __forceinline__ float2 neighbours(const F16* at) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(at);
  return {
      __half2float(__ushort_as_half(static_cast<uint16_t>(word))),
      __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16)))};
}
__device__ __forceinline__ float2 neighbours(const float* at) { return *reinterpret_cast<const float2*>(at); }
__device__ __forceinline__ double2 neighbours(const double* at) { return *reinterpret_cast<const double2*>(at); }

// Where a thread stands.
struct Lane {
  int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
};

}  // namespace merc::focal_contrastive::cuda

// Logits in device memory: units of neighbours by 16-byte accesses, wherever they start.
#pragma once

#include <cstdint>

#include "../../cuda/elements.cuh"

namespace merc::kd_divergence::cuda {

using namespace merc::cuda;

// (G, N, C), or (N, C) shared by the groups, which then lie 0 apart; neighbours in a row lie 1 apart.
struct Logits {
  const char* data;
  Type type;
  int64_t group_stride, row_stride;

  __device__ int64_t offset(int64_t group, int64_t index) const { return group * group_stride + index * row_stride; }
};

// How many neighbours a thread takes at once.
template <class A>
constexpr int kUnit = 8;
template <>
inline constexpr int kUnit<double> = 1;

// The words that start `phase` bytes into `words`, phase even and below 16. Uniform branches, constant indices.
template <int n>
__device__ __forceinline__ void shift_down(uint32_t (&words)[n], unsigned phase) {
  if (phase & 8) {
#pragma unroll
    for (int i = 0; i + 2 < n; ++i) {
      words[i] = words[i + 2];
    }
  }
  if (phase & 4) {
#pragma unroll
    for (int i = 0; i + 1 < n; ++i) {
      words[i] = words[i + 1];
    }
  }
  if (phase & 2) {
#pragma unroll
    for (int i = 0; i + 1 < n; ++i) {
      words[i] = words[i] >> 16 | words[i + 1] << 16;
    }
  }
}

// `count` times 16 bytes from `at`, which need not be aligned: then read as one aligned 16 bytes more. What is read
// beyond the bytes asked for shares its 16 bytes with some of them.
template <int count>
__device__ __forceinline__ void load_words(const char* at, uint32_t* words) {
  const unsigned phase = reinterpret_cast<uintptr_t>(at) % 16;
  const uint4* from = reinterpret_cast<const uint4*>(at - phase);
  if (phase == 0) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const uint4 four = __ldg(from + i);
      words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
    }
  } else {
    uint32_t all[4 * count + 4];
#pragma unroll
    for (int i = 0; i <= count; ++i) {
      const uint4 four = __ldg(from + i);
      all[4 * i] = four.x, all[4 * i + 1] = four.y, all[4 * i + 2] = four.z, all[4 * i + 3] = four.w;
    }
    shift_down(all, phase);
#pragma unroll
    for (int i = 0; i < 4 * count; ++i) {
      words[i] = all[i];
    }
  }
}

// kUnit<A> neighbours, in two steps: first the loads of several units, then their values.
template <class A>
struct Unit;

template <>
struct Unit<float> {
  uint32_t words[8];

  __device__ __forceinline__ void load(const Row& row, int column) {
    if (row.type == Type::f32) {
      load_words<2>(row.at(column), words);
    } else {
      load_words<1>(row.at(column), words);
    }
  }

  __device__ __forceinline__ void values(const Row& row, float* to) const {
    if (row.type == Type::f32) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        to[i] = __uint_as_float(words[i]);
      }
    } else if (row.type == Type::bf16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i])));
        to[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i] >> 16)));
      }
    }
  }
};

template <>
struct Unit<double> {
  double numbers[kUnit<double>];

  __device__ __forceinline__ void load(const Row& row, int column) {
#pragma unroll
    for (int i = 0; i < kUnit<double>; ++i) {
      numbers[i] = element<double>(row.at(column + i), row.type);
    }
  }

  __device__ __forceinline__ void values(const Row&, double* to) const {
#pragma unroll
    for (int i = 0; i < kUnit<double>; ++i) {
      to[i] = numbers[i];
    }
  }
};

// Writes a unit that is not read again soon.
template <class A>
__device__ __forceinline__ void store_unit(const TargetRow& row, int column, const A* values) {
  char* at = row.at(column);
  if constexpr (sizeof(A) == 4) {
    if (reinterpret_cast<uintptr_t>(at) % 16 == 0) {
      uint32_t words[8];
      if (row.type == Type::f32) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          words[i] = __float_as_uint(values[i]);
        }
        __stcs(reinterpret_cast<uint4*>(at) + 1, uint4{words[4], words[5], words[6], words[7]});
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          words[i] = half_bits(values[2 * i], row.type) | uint32_t{half_bits(values[2 * i + 1], row.type)} << 16;
        }
      }
      __stcs(reinterpret_cast<uint4*>(at), uint4{words[0], words[1], words[2], words[3]});
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kUnit<A>; ++i) {
    put_element(row.at(column + i), row.type, values[i]);
  }
}

// How a row of `columns` is cut: single columns up to the first 16-byte border of `data`, whole units, single columns.
template <class A>
struct Span {
  int head, units, singles;

  __device__ Span(const void* data, Type type, int columns) : head(0) {
    if constexpr (sizeof(A) == 4) {
      head = static_cast<int>((16 - reinterpret_cast<uintptr_t>(data) % 16) % 16) / bytes_of(type);
      head = head < columns ? head : columns;
    }
    units = (columns - head) / kUnit<A>;
    singles = columns - units * kUnit<A>;
  }

  __device__ int unit(int i) const { return head + i * kUnit<A>; }

  __device__ int single(int i) const { return i < head ? i : i + units * kUnit<A>; }
};

}  // namespace merc::kd_divergence::cuda

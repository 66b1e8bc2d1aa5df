// Stands in for csrc/focal_contrastive/cuda/tensor_core.cuh: the same fragments, taken from the lanes that hold them.
#pragma once

#include <cstdint>

namespace merc::cuda {

inline uint32_t to_tf32(float x) { return (__float_as_uint(x) + 0x1000) & 0xffffe000u; }

struct Fragments {
  uint32_t a[4], b[2];
};

// `half` is element k % 2 of a word, for two elements a word.
template <int k_size, class Value>
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Value& value) {
  constexpr int a_word = k_size / 8, half = k_size / 2;
  Fragments mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Fragments* of = on_host::exchange(mine);
  const int lane = on_host::now->current % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    double sum = c[i];
    for (int k = 0; k < k_size; ++k) {
      const int t = k % half / a_word, high = k / half;
      sum += static_cast<double>(value(of[row % 8 * 4 + t].a[row / 8 + 2 * high], k % a_word)) *
             value(of[column * 4 + t].b[high], k % a_word);
    }
    c[i] = static_cast<float>(sum);
  }
}

inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<8>(c, a, b, [](uint32_t word, int) { return __uint_as_float(word & 0xffffe000u); });
}

inline void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<16>(c, a, b, [](uint32_t word, int k) { return __uint_as_float(k ? word & 0xffff0000u : word << 16); });
}

inline void multiply_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<16>(c, a, b, [](uint32_t word, int k) {
    return __half2float(__ushort_as_half(static_cast<uint16_t>(k ? word >> 16 : word)));
  });
}

struct DoubleFragments {
  double a, b;
};

inline void multiply_f64(double (&c)[2], double a, double b) {
  const DoubleFragments* of = on_host::exchange(DoubleFragments{a, b});
  const int lane = on_host::now->current % 32;
  for (int i = 0; i < 2; ++i) {
    for (int k = 0; k < 4; ++k) {
      c[i] += of[lane / 4 * 4 + k].a * of[(2 * (lane % 4) + i) * 4 + k].b;
    }
  }
}

}  // namespace merc::cuda

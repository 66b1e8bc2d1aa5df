// The arithmetic of the focal contrastive loss, compiled once for each instruction set, and the choice among them.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "../../cpu/isa.h"
#include "factors.h"
#include "tile.h"

// The loops over columns are functions of their own: with what they read and write apart, and a count that is seen to
// be whole vectors, they become vector code without a remainder.
#define MERC_LOOP __attribute__((noinline))
#define MERC_COLUMNS(j, n) for (int32_t j = 0; j < ((n) & -static_cast<int32_t>(kLanes)); ++j)

namespace merc::focal_contrastive::cpu {
namespace plain {
namespace {
#include "../../cpu/vector_math.h"
#include "blas_product.h"
#include "sums.h"
#include "matrix.h"
#include "unit_rows.h"
}  // namespace
}  // namespace plain

#ifdef MERC_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prefer-vector-width=256")
namespace avx2 {
namespace {
constexpr int kVector = 8, kRows = 4, kVectors = 3;  // of product.h: 12 of 16 registers sum
#include "../../cpu/vector_math.h"
#include "product.h"
#include "sums.h"
#include "matrix.h"
#include "unit_rows.h"
}  // namespace
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512")
namespace avx512 {
namespace {
constexpr int kVector = 16, kRows = 8, kVectors = 2;  // 16 of 32
#include "../../cpu/vector_math.h"
#include "product.h"
#include "sums.h"
#include "matrix.h"
#include "unit_rows.h"
}  // namespace
}  // namespace avx512
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,amx-tile,amx-bf16,prefer-vector-width=512")
namespace amx {
namespace {
using avx512::inverse_power;
#include "half_product.h"
}  // namespace
}  // namespace amx
#pragma GCC pop_options
#endif

namespace {

// The functions of half_product.h.
struct HalfKernels {
  void (*multiply)(int64_t, int64_t, int64_t, HalfLeft, HalfRight, Product<float>);
  float (*scaled_row)(const Half*, int64_t, bool, Half*);
  void (*transpose)(const Half*, int64_t, Half*);
  void (*interleave)(const Half*, const Half*, int64_t, int64_t, Half*);
  void (*scale_row)(float*, int32_t, float, const float*);
  HalfLeft (*split)(const float*, int64_t, int64_t, int64_t, const float*, int64_t, bool, float*, Half*);
};

// Null where there is no such unit.
inline const HalfKernels* half_kernels() {
#ifdef MERC_X86_KERNELS
  static constexpr HalfKernels kernels{amx::multiply,   amx::scaled_row, amx::transpose_halves,
                                       amx::interleave, amx::scale_row,  amx::split};
  if (merc::cpu::isa() == merc::cpu::Isa::amx) {
    return &kernels;
  }
#endif
  return nullptr;
}

// The functions of one instruction set.
template <class A>
struct Kernels {
  decltype(&plain::sum_tile<A>) sum_tile;
  decltype(&plain::matrix_tile<A>) matrix_tile;
  A (*unit_row)(const void*, ScalarType, int64_t, bool, A*);
  decltype(&plain::add_row_gradient<A>) add_row_gradient;
  void (*store_row)(const A*, int64_t, ScalarType, void*);
  decltype(&plain::multiply<A>) multiply;
  int64_t vector;                                     // columns of a right factor that stand together
  void (*transpose)(const A*, int64_t, int64_t, A*);  // null: a right factor needs none
};

#define MERC_KERNELS(isa) \
  Kernels<A> { \
    isa::sum_tile<A>, isa::matrix_tile<A>, isa::unit_row<A>, isa::add_row_gradient<A>, isa::store_row<A>, \
        isa::multiply, isa::kVector, isa::transpose \
  }

template <class A>
Kernels<A> kernels() {
#ifdef MERC_X86_KERNELS
  if constexpr (std::is_same_v<A, float>) {  // exp and log of a double are no vector code
    if (merc::cpu::isa() >= merc::cpu::Isa::avx512) {
      return MERC_KERNELS(avx512);
    }
    if (merc::cpu::isa() == merc::cpu::Isa::avx2) {
      return MERC_KERNELS(avx2);
    }
  }
#endif
  return MERC_KERNELS(plain);
}

}  // namespace
}  // namespace merc::focal_contrastive::cpu

#undef MERC_LOOP
#undef MERC_COLUMNS
#undef MERC_KERNELS

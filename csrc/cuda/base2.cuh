// Powers and logarithms to base 2, which the chip has an instruction for, on the device and on the host.
#pragma once

#include <cmath>
#include <limits>

#ifdef __CUDACC__
#define MERC_BOTH __host__ __device__ __forceinline__
#else
#define MERC_BOTH inline
#endif

namespace merc::cuda {

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Relative error at most 2^-22; 0 below the smallest normal number.
MERC_BOTH float power2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = std::exp2(x);
  return y < std::numeric_limits<float>::min() ? 0.0f : y;
#endif
}

MERC_BOTH double power2(double x) { return exp2(x); }

MERC_BOTH float logarithm2(float x) { return log2f(x); }
MERC_BOTH double logarithm2(double x) { return log2(x); }

MERC_BOTH float larger(float a, float b) { return fmaxf(a, b); }
MERC_BOTH double larger(double a, double b) { return fmax(a, b); }

}  // namespace merc::cuda

// One positive term of the focal contrastive loss and its derivatives, for host and device: the one place where the
// formula stands in C++.
//
//   g(s, L) = -h l,  l = s - L      h = base^gamma,  base = (1 - tau s) / 2  or  1 - e^l, clamped to [floor, 1]
//   dg/ds = -h - h' l               h' = dh/ds: -(gamma tau / 2) base^(gamma-1)  or  -gamma e^l base^(gamma-1),
//                                   0 where the base is clamped, and where h is detached
//   dg/dL = h (similarity) or -dg/ds (probability)
#pragma once

#include "options.h"

#ifdef __CUDACC__
#define MERC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MERC_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace merc::focal_contrastive {

enum class Power { zero, one, two, any };  // gamma, where a power needs no logarithm

inline Power power_of(double gamma) {
  return gamma == 0 ? Power::zero : gamma == 1 ? Power::one : gamma == 2 ? Power::two : Power::any;
}

// 2^-24, or 2^-53 for double: half a rounding of 1.
template <class A>
constexpr A kFloor = sizeof(A) == 8 ? A(1.1102230246251565e-16) : A(5.9604644775390625e-8);

// The factor h, and h'.
template <class A>
struct Factor {
  A h, slope;
};

// base^gamma and gamma base^(gamma - 1). Math has exp, log and minus_expm1 (1 - e^x for x <= 0) of A.
template <class Math, Power power, class A>
MERC_HOST_DEVICE Factor<A> raise(A base, const Options<A>& options) {
  if constexpr (power == Power::zero) {
    return {A(1), A(0)};
  } else {
    const bool low = base < kFloor<A>;
    const bool high = base > A(1);
    const A clamped = low ? kFloor<A> : high ? A(1) : base;  // a NaN stays one
    A h, slope;
    if constexpr (power == Power::one) {
      h = clamped;
      slope = A(1);
    } else if constexpr (power == Power::two) {
      h = clamped * clamped;
      slope = 2 * clamped;
    } else {
      h = Math::exp(options.gamma * Math::log(clamped));
      slope = options.gamma * h / clamped;
    }
    return {h, low | high ? A(0) : slope};
  }
}

// From the cosine: tau s.
template <class Math, Power power, class A>
MERC_HOST_DEVICE Factor<A> similarity_factor(A cosine, A tau, const Options<A>& options) {
  const Factor<A> raised = raise<Math, power>((1 - cosine) * A(0.5), options);
  return {raised.h, A(-0.5) * tau * raised.slope};
}

// From l = s - L <= 0.
template <class Math, Power power, class A>
MERC_HOST_DEVICE Factor<A> probability_factor(A l, const Options<A>& options) {
  const A base = Math::minus_expm1(l);
  const Factor<A> raised = raise<Math, power>(base, options);
  return {raised.h, (base - 1) * raised.slope};
}

// dg/ds; `detached`: h has no derivative.
template <class A>
MERC_HOST_DEVICE A slope_by_s(const Factor<A>& factor, A l, bool detached) {
  return detached ? -factor.h : -factor.h - factor.slope * l;
}

}  // namespace merc::focal_contrastive

// The arithmetic of one row of the divergence, on the device and on the host.
//
//   x, y     raw logits of the first and the second argument of KL(x|y); x' = x - max x, y' = y - max y. The difference
//            to the largest logit is formed before anything rounds it.
//   z        sum e^(x' / T), each term by one instruction: 2^(x' k), k = log2(e) / T; log z is kept to base 2. In
//            float32 k has a second, lower part: its rounding alone would show in every term, the same way.
//   bracket  sum e^(x' / T) (x' - y'), shifted by z_x times the shift of x' - y' when a maximum moves
//   mean     bracket / z_x, the mean of x' - y' under x: KL = mean / T + ln z_y - ln z_x, and x's gradient of it is
//            x (x' - y' - mean) / T^2, in which nothing large is left to cancel
//   value    KL(p|q), KL(q|p), or js: (1 - beta) KL(q|m) + beta KL(p|m) with m = beta p + (1 - beta) q
//   gradient to the second argument of KL(a|b): b - a; to the first: a (log a - log b - KL); js, to the student's:
//            (1 - beta) q (log q - log m - KL(q|m)); all over T
// A class of probability 0 adds nothing, whatever the other argument says of it, but in a row whose divergence is NaN.
#pragma once

#include <cstdint>
#include <limits>

#include "../../cuda/base2.cuh"
#include "../options.h"

namespace merc::kd_divergence::cuda {

using namespace merc::cuda;

// x -> k x (+ more), k = log2(e) / T. -inf stays -inf: the lower part is positive, so no infinities of both signs meet.
template <class A>
struct ToBase2;

template <>
struct ToBase2<float> {
  float high, low;

  MERC_BOTH explicit ToBase2(float temperature) {
    constexpr float log2e = static_cast<float>(kLog2e), rest = static_cast<float>(kLog2e - log2e);
    high = log2e / temperature * (1.0f - 0x1p-22f);
    low = (fmaf(-high, temperature, log2e) + rest) / temperature;
  }

  MERC_BOTH float operator()(float x) const { return fmaf(x, high, x * low); }
  MERC_BOTH float operator()(float x, float more) const { return fmaf(x, high, fmaf(x, low, more)); }
};

template <>
struct ToBase2<double> {
  double k;

  MERC_BOTH explicit ToBase2(double temperature) : k(kLog2e / temperature) {}

  MERC_BOTH double operator()(double x) const { return x * k; }
  MERC_BOTH double operator()(double x, double more) const { return x * k + more; }
};

template <class A>
struct PairSums {
  A max_x, max_y, z_x, z_y, bracket;
  A z_raw;  // of the student at T = 1, for the cross entropy
};

template <class A>
MERC_BOTH PairSums<A> no_sums() {
  const A lowest = std::numeric_limits<A>::lowest();
  return {lowest, lowest, 0, 0, 0, 0};
}

// Whose sum at T = 1 is taken.
enum class Raw : int { none, x, y };

// Moves the maxima up to max_x and max_y. Where all of z_x vanishes, so does the bracket: the shift may be infinite.
template <class A>
MERC_BOTH void rescale(PairSums<A>& sums, A max_x, A max_y, const ToBase2<A>& k, Raw raw) {
  const A shift_x = sums.max_x - max_x, shift_y = sums.max_y - max_y;
  const A shrink = power2(k(shift_x));
  const A shifted = shrink * (sums.bracket + sums.z_x * (shift_x - shift_y));
  sums.z_x *= shrink;
  sums.z_y *= power2(k(shift_y));
  sums.bracket = sums.z_x == A(0) ? A(0) : shifted;
  if (raw != Raw::none) {
    sums.z_raw *= power2((raw == Raw::x ? shift_x : shift_y) * A(kLog2e));
  }
  sums.max_x = max_x;
  sums.max_y = max_y;
}

// Adds n classes.
template <int n, class A>
MERC_BOTH void absorb(PairSums<A>& sums, const A* x, const A* y, const ToBase2<A>& k, Raw raw) {
  A max_x = sums.max_x, max_y = sums.max_y;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    max_x = larger(max_x, x[i]);
    max_y = larger(max_y, y[i]);
  }
  rescale(sums, max_x, max_y, k, raw);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const A from_x = x[i] - max_x, from_y = y[i] - max_y;
    const A e = power2(k(from_x));
    sums.z_x += e;
    sums.z_y += power2(k(from_y));
    sums.bracket += e == A(0) ? A(0) : e * (from_x - from_y);
  }
  if (raw != Raw::none) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      sums.z_raw += power2((raw == Raw::x ? x[i] - max_x : y[i] - max_y) * A(kLog2e));
    }
  }
}

// Threads agree on the maxima first, rescale once, and then add.
template <class A>
struct Maxima {
  A x, y;
};

using merc::cuda::larger;  // of numbers

template <class A>
MERC_BOTH Maxima<A> larger(const Maxima<A>& a, const Maxima<A>& b) {
  return {larger(a.x, b.x), larger(a.y, b.y)};
}

// Of sums with the same maxima.
template <class A>
MERC_BOTH PairSums<A> operator+(const PairSums<A>& a, const PairSums<A>& b) {
  return {a.max_x, a.max_y, a.z_x + b.z_x, a.z_y + b.z_y, a.bracket + b.bracket, a.z_raw + b.z_raw};
}

// What the backward pass needs of a row beside its logits: maxima of the raw logits, log2 z, and what the gradient of
// a first argument subtracts: the mean above, twice; under js KL(q|m) and KL(p|m).
template <class A>
struct RowStats {
  A max_student, max_teacher, log_z_student, log_z_teacher, mean_student, mean_teacher, log_z_raw;
};

static_assert(sizeof(RowStats<float>) == kStats * sizeof(float));

// 0 where both sums are of finite logits; NaN where one is NaN, or 0 as all its logits are -inf.
template <class A>
MERC_BOTH A nothing_of(A log_x, A log_y) {
  return (log_x - log_x) + (log_y - log_y);
}

// What a class of probability 0 gets of the gradient, from the row's mean: 0, or its NaN.
template <class A>
MERC_BOTH A zero_of(A mean) {
  return mean == mean ? A(0) : mean;
}

// From a row's sums; js takes its two divergences from a sweep of their own.
template <class A>
MERC_BOTH RowStats<A> stats_of(const PairSums<A>& sums, bool student_is_x) {
  const A log_x = logarithm2(sums.z_x), log_y = logarithm2(sums.z_y),
          mean = sums.bracket / sums.z_x + nothing_of(log_x, log_y);
  return {
      student_is_x ? sums.max_x : sums.max_y,
      student_is_x ? sums.max_y : sums.max_x,
      student_is_x ? log_x : log_y,
      student_is_x ? log_y : log_x,
      mean,
      mean,
      logarithm2(sums.z_raw)};
}

// ln(x / m) and ln(y / m) of m = w_x x + w_y y, from delta = log2(y / x).
template <class A>
MERC_BOTH void against_mixture(A delta, A w_x, A w_y, A& x_over_m, A& y_over_m) {
  const A u = power2(delta > A(0) ? -delta : delta);
  const A over = -logarithm2(delta > A(0) ? w_y + w_x * u : w_x + w_y * u);  // of the larger of the two
  x_over_m = A(kLn2) * (delta > A(0) ? over - delta : over);
  y_over_m = A(kLn2) * (delta > A(0) ? over : over + delta);
}

// The two divergences of the js form, each with the sum of its weights: over them, as that is 1 only up to rounding.
template <class A>
struct Pair {
  A student, teacher, q, p;
};

template <class A>
MERC_BOTH Pair<A> operator+(const Pair<A>& a, const Pair<A>& b) {
  return {a.student + b.student, a.teacher + b.teacher, a.q + b.q, a.p + b.p};
}

// A row's stats, and what multiplies its gradients: c that of the divergence, ce that of the cross entropy.
template <class A>
struct Slope {
  RowStats<A> of;
  ToBase2<A> k;
  A beta, c, ce;
  A per_t;
  Direction direction;
  int label;  // -1: no cross entropy

  MERC_BOTH Slope(
      const RowStats<A>& stats, const Options<A>& options, Direction direction_, A temperature, A factor, int label_)
      : of(stats),
        k(temperature),
        beta(options.beta),
        c(options.scale_by_t2 ? factor * temperature : factor / temperature),
        ce(factor * options.ce_weight),
        per_t(A(1) / temperature),
        direction(direction_),
        label(label_) {}

  // Adds the two terms of the js form.
  MERC_BOTH void add_divergences(A student, A teacher, Pair<A>& to) const {
    const A x = student - of.max_student, y = teacher - of.max_teacher;
    const A q = power2(k(x, -of.log_z_student)), p = power2(k(y, -of.log_z_teacher));
    A q_over_m, p_over_m;
    against_mixture(k(y - x, of.log_z_student - of.log_z_teacher), A(1) - beta, beta, q_over_m, p_over_m);
    to.student += q == A(0) ? A(0) : q * q_over_m;
    to.teacher += p == A(0) ? A(0) : p * p_over_m;
    to.q += q;
    to.p += p;
  }

  // The row's divergence, without T^2.
  MERC_BOTH A divergence() const {
    if (direction == Direction::js) {
      return (A(1) - beta) * of.mean_student + beta * of.mean_teacher;
    }
    const A logs = A(kLn2) * (of.log_z_teacher - of.log_z_student);
    return of.mean_student * per_t + (direction == Direction::reverse ? logs : -logs);
  }

  MERC_BOTH A cross_entropy(A student) const { return A(kLn2) * of.log_z_raw - (student - of.max_student); }

  // Of the n classes column, column + step, ..., to the student's logits, and to the teacher's where `both`.
  template <int n>
  MERC_BOTH void gradients(
      const A* student, const A* teacher, int column, int step, bool both, A* to_student, A* to_teacher) const {
    const A zero = zero_of(of.mean_student);
    if (direction == Direction::js) {
      const A c_student = c * (A(1) - beta), c_teacher = c * beta;
      const A log_ratio = of.log_z_student - of.log_z_teacher;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const A x = student[i] - of.max_student, y = teacher[i] - of.max_teacher;
        const A q = power2(k(x, -of.log_z_student)), p = power2(k(y, -of.log_z_teacher));
        A q_over_m, p_over_m;
        against_mixture(k(y - x, log_ratio), A(1) - beta, beta, q_over_m, p_over_m);
        to_student[i] = q == A(0) ? zero : c_student * q * (q_over_m - of.mean_student);
        to_teacher[i] = p == A(0) ? zero : c_teacher * p * (p_over_m - of.mean_teacher);
      }
    } else {
      const A c_first = c * per_t;
#pragma unroll
      for (int i = 0; i < n; ++i) {  // the second argument of KL
        const A x = student[i] - of.max_student, y = teacher[i] - of.max_teacher;
        const A slope = c * (power2(k(x, -of.log_z_student)) - power2(k(y, -of.log_z_teacher)));
        to_student[i] = slope;
        to_teacher[i] = -slope;
      }
      if (direction == Direction::reverse) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          const A x = student[i] - of.max_student, y = teacher[i] - of.max_teacher;
          const A q = power2(k(x, -of.log_z_student));
          to_student[i] = q == A(0) ? zero : c_first * q * (x - y - of.mean_student);
        }
      } else if (both) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          const A x = student[i] - of.max_student, y = teacher[i] - of.max_teacher;
          const A p = power2(k(y, -of.log_z_teacher));
          to_teacher[i] = p == A(0) ? zero : c_first * p * (y - x - of.mean_teacher);
        }
      }
    }
    if (label >= 0) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const A raw = power2((student[i] - of.max_student) * A(kLog2e) - of.log_z_raw);
        to_student[i] += ce * (i * step == label - column ? raw - A(1) : raw);
      }
    }
  }
};

}  // namespace merc::kd_divergence::cuda

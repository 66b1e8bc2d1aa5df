// exp, expm1, log, log1p and a division without branches, so that a loop over them becomes vector code. Included once
// per instruction set, inside its namespace; hence no include guard.

// e^x for x <= 88, within 2 ulp; 0 below the smallest normal number. Cody and Waite's reduction, a polynomial in
// the remainder (relative error 3e-9, fitted to |r| <= log(2) / 2).
inline float fast_exp(float x) {
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which the last bits then hold
  const float shifted = x * 1.44269504f + round;
  const float n = shifted - round;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float y = 1.3814540e-3f;
  y = y * r + 8.3687451e-3f;
  y = y * r + 4.1668391e-2f;
  y = y * r + 1.6666520e-1f;
  y = y * r + 4.9999993e-1f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  unsigned bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  float scale;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return x < -87.3365f ? 0.0f : y * scale;
}

inline double fast_exp(double x) { return __builtin_exp(x); }

// 1 - e^x for x <= 0, within 3 ulp: a series near 0.
inline float fast_minus_expm1(float x) {
  float y = 2.4801587302e-5f;
  y = y * x + 1.9841269841e-4f;
  y = y * x + 1.3888888889e-3f;
  y = y * x + 8.3333333333e-3f;
  y = y * x + 4.1666666667e-2f;
  y = y * x + 1.6666666667e-1f;
  y = y * x + 0.5f;
  y = y * x * x + x;
  return x > -0.5f ? -y : 1.0f - fast_exp(x);
}

inline double fast_minus_expm1(double x) { return -__builtin_expm1(x); }

// x / t for scale = 1 / t, corrected to the rounding of a division where there is a fused multiply-add.
template <class A>
inline A divide(A x, A t, A scale) {
  const A q = x * scale;
  const A corrected = q + (x - q * t) * scale;
  return q - q == A(0) ? corrected : q;  // an infinity stays
}

// log(1 + u) for u in [0, 1]: 2 artanh(u / (2 + u)).
inline float fast_log1p(float u) {
  const float w = u / (2.0f + u);
  const float v = w * w;
  float y = 1.0f / 15.0f;
  y = y * v + 1.0f / 13.0f;
  y = y * v + 1.0f / 11.0f;
  y = y * v + 1.0f / 9.0f;
  y = y * v + 1.0f / 7.0f;
  y = y * v + 1.0f / 5.0f;
  y = y * v + 1.0f / 3.0f;
  return 2.0f * (w + w * v * y);
}

inline double fast_log1p(double u) { return __builtin_log1p(u); }

// log(x) for normal x > 0, within 2 ulp; -inf for 0 (Cephes).
inline float fast_log(float x) {
  int bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const int fraction = (bits & 0x007fffff) | 0x3f000000;
  float half;  // in [0.5, 1)
  __builtin_memcpy(&half, &fraction, sizeof half);
  const float low = half < 0.707106781f ? 1.0f : 0.0f;
  const float m = half + half * low - 1.0f;
  const float e = static_cast<float>((bits >> 23) - 126) - low;
  const float v = m * m;
  float y = 7.0376836292e-2f;
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m * v + e * -2.12194440e-4f - 0.5f * v;
  const float result = m + y + e * 0.693359375f;
  const float zero = x == 0.0f ? -__builtin_inff() : x;  // or NaN
  return x > 0.0f ? result : zero;
}

inline double fast_log(double x) { return __builtin_log(x); }

// Blocks of logits, and what is computed from single numbers, for one instruction set; included inside its namespace,
// hence no include guard.

template <class T, class A>
void load(const void* from, int64_t offset, int64_t n, A t, A* __restrict to) {
  const T* source = static_cast<const T*>(from) + offset;
  const A scale = A(1) / t;
  int exponent;
  if (__builtin_frexp(t, &exponent) == 0.5) {  // a power of two: the product is exact
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      to[i] = static_cast<A>(source[i]) * scale;
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      to[i] = divide(static_cast<A>(source[i]), t, scale);
    }
  }
}

template <class T, class A>
void store(void* to, int64_t offset, int64_t n, const A* __restrict from) {
  T* target = static_cast<T*>(to) + offset;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    target[i] = static_cast<T>(from[i]);
  }
}

template <class A>
void load(const Logits& logits, int64_t row, int64_t column, int64_t n, A t, A* to) {
  const int64_t offset = logits.row_offset(row) + column;
  switch (logits.type) {
    case ScalarType::Double:
      return load<double>(logits.data, offset, n, t, to);
    case ScalarType::Float:
      return load<float>(logits.data, offset, n, t, to);
    case ScalarType::BFloat16:
      return load<torch::headeronly::BFloat16>(logits.data, offset, n, t, to);
    default:
      return load<torch::headeronly::Half>(logits.data, offset, n, t, to);
  }
}

template <class A>
void store(const Gradient& gradient, int64_t offset, int64_t n, const A* from) {
  switch (gradient.type) {
    case ScalarType::Double:
      return store<double>(gradient.data, offset, n, from);
    case ScalarType::Float:
      return store<float>(gradient.data, offset, n, from);
    case ScalarType::BFloat16:
      return store<torch::headeronly::BFloat16>(gradient.data, offset, n, from);
    default:
      return store<torch::headeronly::Half>(gradient.data, offset, n, from);
  }
}

template <class A>
void fill(A* __restrict values, int64_t n, A value) {
  for (int64_t i = 0; i < n; ++i) {
    values[i] = value;
  }
}

template <class A>
A load_one(const Logits& logits, int64_t row, int64_t column, A t) {
  A value;
  load(logits, row, column, 1, t, &value);
  return value;
}

template <class A>
A largest(const A* __restrict values, int64_t n) {
  A most = std::numeric_limits<A>::lowest();
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    most = values[i] > most ? values[i] : most;
  }
  return most;
}

// e times a difference of logarithms, 0 where e is 0, whatever the logarithms are. A NaN e stays one.
template <class A>
inline A times(A e, A difference) {
  const A term = e * difference;
  return e == A(0) ? A(0) : term;
}

// 0, or the NaN of a row whose divergence is one: the gradient of a class of probability 0.
template <class A>
inline A zero_of(A divergence) {
  return divergence == divergence ? A(0) : divergence;
}

// log(m / a) and log(m / b) for m = w_a a + w_b b, where `gap` = log b - log a: no difference of two large logarithms.
template <class A>
struct Mixture {
  A log_a, log_b;  // of the weights

  explicit Mixture(double weight_a) : log_a(__builtin_log(weight_a)), log_b(__builtin_log(1 - weight_a)) {}
  A over_a(A gap) const { return log_a + soft(gap + (log_b - log_a)); }
  A over_b(A gap) const { return log_b + soft((log_a - log_b) - gap); }

 private:
  static A soft(A d) { return (d > A(0) ? d : A(0)) + fast_log1p(fast_exp(d > A(0) ? -d : d)); }
};

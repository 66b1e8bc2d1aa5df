// What is done to single rows, for one instruction set; included inside its namespace, hence no include guard.

// A power of two that brings x near 1, exactly, where that and its inverse are normal numbers.
template <class A>
A inverse_power(A x) {
  constexpr int most = std::numeric_limits<A>::max_exponent - 2;
  int exponent = 0;
  std::frexp(x, &exponent);
  return std::ldexp(A(1), -std::clamp(exponent, -most, most));
}

// A unit row and its length; a zero row stays zero. The size of the largest element is taken out first: no square over-
// or underflows.
template <class T, class A>
A unit_row(const void* from, int64_t n, bool normalize, A* __restrict to) {
  const T* __restrict source = static_cast<const T*>(from);
  A most = 0, sum = 0;
#pragma omp simd reduction(max : most) reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const A x = static_cast<A>(source[i]);
    const A size = x < 0 ? -x : x;
    to[i] = x;
    most = size > most ? size : most;
    sum += x;
  }
  if (!normalize) {
    return 1;
  }
  if (most == 0 && sum == sum) {
    return 0;
  }
  const A scale = inverse_power(most);
  A square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; ++i) {
    const A x = to[i] * scale;
    square += x * x;
  }
  const A length = static_cast<A>(__builtin_sqrt(square));
  const A inverse = 1 / length;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    to[i] = divide(to[i] * scale, length, inverse);
  }
  return length / scale;
}

template <class A>
A unit_row(const void* from, ScalarType type, int64_t n, bool normalize, A* to) {
  switch (type) {
    case ScalarType::Double:
      return unit_row<double>(from, n, normalize, to);
    case ScalarType::Float:
      return unit_row<float>(from, n, normalize, to);
    case ScalarType::BFloat16:
      return unit_row<torch::headeronly::BFloat16>(from, n, normalize, to);
    default:
      return unit_row<torch::headeronly::Half>(from, n, normalize, to);
  }
}

// sum += (g - (z.g) z) / length, the gradient of what was normalised.
template <class A>
void add_row_gradient(
    const A* __restrict g, const A* __restrict z, A length, int64_t n, bool normalize, A scale, A* __restrict sum) {
  A along = 0;
  if (normalize) {
    if (length == 0) {
      return;
    }
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < n; ++i) {
      along += g[i] * z[i];
    }
  }
  scale /= length;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    sum[i] += (g[i] - along * z[i]) * scale;
  }
}

template <class T, class A>
void store_row(const A* __restrict from, int64_t n, void* to) {
  T* __restrict target = static_cast<T*>(to);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    target[i] = static_cast<T>(from[i]);
  }
}

template <class A>
void store_row(const A* from, int64_t n, ScalarType type, void* to) {
  switch (type) {
    case ScalarType::Double:
      return store_row<double>(from, n, to);
    case ScalarType::Float:
      return store_row<float>(from, n, to);
    case ScalarType::BFloat16:
      return store_row<torch::headeronly::BFloat16>(from, n, to);
    default:
      return store_row<torch::headeronly::Half>(from, n, to);
  }
}

// Products of tiles, for one instruction set; included inside its namespace, hence no include guard, after
//   kVector  numbers of a vector;  kRows, kVectors  of the product that registers hold at a time.
//
// A few rows by a few vectors of columns stay in registers over the depth. Both factors lie in the cache, and the right
// one in vectors, so that nothing is packed: where tiles are small, a BLAS spends a fifth of its time on that and on
// the way to it.

typedef float Vector __attribute__((vector_size(4 * kVector)));

inline Vector load(const float* from) {
  Vector x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

template <int rows, int vectors>
[[gnu::always_inline]] inline void multiply_in_registers(
    int64_t depth, Left<float> a, Right<float> b, Product<float> c) {
  Vector sums[rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        sums[i][v] += a.data[i * a.row + k * a.depth] * load(b.data + v * b.vector + k * b.depth);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      float* to = c.data + i * c.stride + v * kVector;
      const Vector sum = c.add ? load(to) + sums[i][v] : sums[i][v];
      __builtin_memcpy(to, &sum, sizeof sum);
    }
  }
}

// All rows of some vectors of columns.
template <int vectors, int rows = kRows>
void multiply_strip(int64_t height, int64_t depth, Left<float> a, Right<float> b, Product<float> c) {
  for (; height >= rows; height -= rows) {
    multiply_in_registers<rows, vectors>(depth, a, b, c);
    a.data += rows * a.row;
    c.data += rows * c.stride;
  }
  if constexpr (rows > 1) {
    multiply_strip<vectors, rows / 2>(height, depth, a, b, c);
  }
}

constexpr int64_t kDepth = 192;  // of a part

// Of a depth of kDepth at most.
inline void multiply_columns(
    int64_t rows, int64_t depth, int64_t columns, Left<float> a, Right<float> b, Product<float> c) {
  int64_t vectors = columns / kVector;
  const auto next = [&](int n) {
    vectors -= n;
    b.data += n * b.vector;
    c.data += n * kVector;
  };
  for (; vectors >= kVectors; next(kVectors)) {
    multiply_strip<kVectors>(rows, depth, a, b, c);
  }
  for (; vectors > 0; next(1)) {
    multiply_strip<1>(rows, depth, a, b, c);
  }
  const int64_t rest = columns % kVector;
  if (rest == 0) {
    return;
  }
  // The last columns, in copies: a whole vector would reach over the end of the memory.
  float last[kDepth * kVector] = {}, product[kRows * kVector];
  for (int64_t k = 0; k < depth; ++k) {
    std::copy_n(b.data + k * b.depth, rest, last + k * kVector);
  }
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t some = std::min<int64_t>(rows - first, kRows);
    multiply_strip<1>(
        some, depth, {a.data + first * a.row, a.row, a.depth}, {last, 0, kVector}, {product, kVector, false});
    for (int64_t i = 0; i < some; ++i) {
      for (int64_t j = 0; j < rest; ++j) {
        float& to = c.data[(first + i) * c.stride + j];
        to = product[i * kVector + j] + (c.add ? to : 0);
      }
    }
  }
}

// In parts of the depth: sums of fewer terms round less.
inline void multiply(int64_t rows, int64_t depth, int64_t columns, Left<float> a, Right<float> b, Product<float> c) {
  const int64_t parts = std::max<int64_t>((depth + kDepth - 1) / kDepth, 1);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = depth * part / parts, end = depth * (part + 1) / parts;
    multiply_columns(
        rows, end - begin, columns, {a.data + begin * a.depth, a.row, a.depth},
        {b.data + begin * b.depth, b.vector, b.depth}, {c.data, c.stride, c.add || part > 0});
  }
}

typedef float Four __attribute__((vector_size(16)));
typedef int Order __attribute__((vector_size(16)));

// Four numbers of four rows, rows `width` apart, become columns kVector apart.
inline void transpose_four(const float* rows, int64_t width, float* to) {
  Four x[4], pairs[4];
  for (int i = 0; i < 4; ++i) {
    __builtin_memcpy(&x[i], rows + i * width, sizeof x[i]);
  }
  for (int i = 0; i < 2; ++i) {  // of rows 0 and 1, 2 and 3
    pairs[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], Order{0, 4, 1, 5});
    pairs[i + 2] = __builtin_shuffle(x[2 * i], x[2 * i + 1], Order{2, 6, 3, 7});
  }
  for (int i = 0; i < 4; ++i) {
    const Four column =
        __builtin_shuffle(pairs[i / 2 * 2], pairs[i / 2 * 2 + 1], i % 2 ? Order{2, 3, 6, 7} : Order{0, 1, 4, 5});
    __builtin_memcpy(to + i * kVector, &column, sizeof column);
  }
}

// Rows of `width` numbers become the columns of a right factor; those that lack to a vector are zero.
inline void transpose(const float* rows, int64_t count, int64_t width, float* to) {
  const int64_t fours = count == kVector ? width / 4 * 4 : 0;
  for (int64_t k = 0; k < fours; k += 4) {
    for (int64_t i = 0; i < kVector; i += 4) {
      transpose_four(rows + i * width + k, width, to + k * kVector + i);
    }
  }
  for (int64_t k = fours; k < width; ++k) {
    for (int64_t i = 0; i < kVector; ++i) {
      to[k * kVector + i] = i < count ? rows[i * width + k] : 0;
    }
  }
}

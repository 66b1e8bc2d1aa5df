// Products of bfloat16 with float32 sums by the matrix unit (AMX); included inside its namespace, hence no include
// guard.
//
// Rows of bfloat16 are exact as they come, so their products are as good as those of float32, at a multiple of the
// rate: a cosine is the product of two rows over their lengths. Numbers of float32 that meet them are split into two of
// bfloat16, whose sum has 16 of their 24 bits.
//
// A right factor stands in panels of 16 columns; a line of a panel has two steps of the depth, both numbers of a column
// side by side. Factors are filled up to whole tiles with zeros.

constexpr int64_t kTile = kTileRows * kTileDepth;

struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);

// `down` by `across` tiles of the product: numbers 0 to 3 sum, 4 and 5 have rows, 6 and 7 columns.
template <int down, int across>
inline void multiply_tiles(int64_t steps, HalfLeft a, HalfRight b, Product<float> c) {
  const int64_t stride = c.stride * sizeof(float), row = a.row * sizeof(Half);
  if (c.add) {
    _tile_loadd(0, c.data, stride);
    if constexpr (across == 2) _tile_loadd(1, c.data + kTileRows, stride);
    if constexpr (down == 2) _tile_loadd(2, c.data + kTileRows * c.stride, stride);
    if constexpr (down == 2 && across == 2) _tile_loadd(3, c.data + kTileRows * c.stride + kTileRows, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int part = 0; part < a.parts; ++part) {
    const Half* left = a.data + part * steps * kTileDepth;
    for (int64_t step = 0; step < steps; ++step) {
      _tile_loadd(4, left + step * kTileDepth, row);
      _tile_loadd(6, b.data + step * kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (across == 2) {
        _tile_loadd(7, b.data + b.panel + step * kTile, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (down == 2) {
        _tile_loadd(5, left + kTileRows * a.row + step * kTileDepth, row);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (across == 2) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, c.data, stride);
  if constexpr (across == 2) _tile_stored(1, c.data + kTileRows, stride);
  if constexpr (down == 2) _tile_stored(2, c.data + kTileRows * c.stride, stride);
  if constexpr (down == 2 && across == 2) _tile_stored(3, c.data + kTileRows * c.stride + kTileRows, stride);
}

// The same where only `rows` by `columns` of it are in the memory of the product.
template <int down, int across>
inline void multiply_within(int64_t rows, int64_t columns, int64_t steps, HalfLeft a, HalfRight b, Product<float> c) {
  constexpr int64_t width = across * kTileRows;
  if (rows >= down * kTileRows && columns >= width) {
    return multiply_tiles<down, across>(steps, a, b, c);
  }
  alignas(64) float whole_tiles[down * kTileRows * width];
  multiply_tiles<down, across>(steps, a, b, {whole_tiles, width, false});
  for (int64_t i = 0; i < std::min(rows, down * kTileRows); ++i) {
    for (int64_t j = 0; j < std::min(columns, width); ++j) {
      float& to = c.data[i * c.stride + j];
      to = whole_tiles[i * width + j] + (c.add ? to : 0);
    }
  }
}

// `depth` is in whole tiles, `rows` and `columns` are those of the product in memory.
inline void multiply(int64_t rows, int64_t depth, int64_t columns, HalfLeft a, HalfRight b, Product<float> c) {
  const TileShapes shapes;
  _tile_loadconfig(&shapes);
  const int64_t steps = depth / kTileDepth;
  for (int64_t j = 0; j < columns; j += 2 * kTileRows) {
    const bool two = columns - j > kTileRows;
    for (int64_t i = 0; i < rows; i += 2 * kTileRows) {
      const HalfLeft left{a.data + i * a.row, a.row, a.parts};
      const HalfRight right{b.data + j / kTileRows * b.panel, b.panel};
      const Product<float> to{c.data + i * c.stride + j, c.stride, c.add};
      const int64_t height = rows - i, width = columns - j;
      if (height > kTileRows) {
        two ? multiply_within<2, 2>(height, width, steps, left, right, to)
            : multiply_within<2, 1>(height, width, steps, left, right, to);
      } else {
        two ? multiply_within<1, 2>(height, width, steps, left, right, to)
            : multiply_within<1, 1>(height, width, steps, left, right, to);
      }
    }
  }
  _tile_release();
}

// The float32 with the bits of a bfloat16.
inline float widened(Half x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// One row of bfloat16, times a power of two that brings it near 1: exact. The power.
inline float scaled_row(const Half* __restrict from, int64_t n, bool scales, Half* __restrict to) {
  if (!scales) {
    std::copy_n(from, n, to);
    return 1;
  }
  float most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    const float size = widened(from[i] & 0x7fff);
    most = size > most ? size : most;
  }
  const float scale = inverse_power(most);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float x = widened(from[i]) * scale;
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    to[i] = static_cast<Half>(bits >> 16);
  }
  return scale;
}

// 16 rows of `depth` numbers become a panel of a right factor whose depth runs along the rows.
inline void transpose_halves(const Half* rows, int64_t depth, Half* panel) {
  avx512::transpose(reinterpret_cast<const float*>(rows), kTileRows, depth / 2, reinterpret_cast<float*>(panel));
}

// Two rows of `columns` numbers, in whole tiles, become a line of the panels of a right factor whose depth runs down.
inline void interleave(
    const Half* __restrict first, const Half* __restrict second, int64_t columns, int64_t panel, Half* __restrict to) {
  for (int64_t j = 0; j < columns; j += kTileRows) {
    Half* line = to + j / kTileRows * panel;
    for (int64_t k = 0; k < kTileRows; ++k) {
      line[2 * k] = first[j + k];
      line[2 * k + 1] = second[j + k];
    }
  }
}

// Products of rows become cosines.
MERC_LOOP void scale_row(float* __restrict x, int32_t n, float of_row, const float* __restrict of_columns) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    x[j] *= of_row * of_columns[j];
  }
}

// x f in two parts.
inline void split_row(
    const float* __restrict x, const float* __restrict f, int32_t n, Half* __restrict high, Half* __restrict low) {
#pragma omp simd
  MERC_COLUMNS(j, n) {
    const float value = x[j] * f[j];
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint32_t top = bits & 0xffff0000u;
    float rest;
    __builtin_memcpy(&rest, &top, sizeof rest);
    rest = rest - rest == 0.0f ? value - rest : 0.0f;  // an infinity has none
    uint32_t rest_bits;
    __builtin_memcpy(&rest_bits, &rest, sizeof rest_bits);
    high[j] = static_cast<Half>(top >> 16);
    low[j] = static_cast<Half>((rest_bits + 0x8000u) >> 16);
  }
}

// A tile of M, or its transpose, as a left factor of two parts: `tile` has `height` rows, `stride` apart, and `n`
// columns; `factors` stand along the depth. `scratch` holds 16 rows of a tile.
inline HalfLeft split(
    const float* tile, int64_t stride, int64_t height, int64_t n, const float* factors, int64_t depth, bool transposed,
    float* scratch, Half* to) {
  const HalfLeft left{to, 2 * depth, 2};
  const int64_t rows = transposed ? n : height, filled = transposed ? height : n;
  if (transposed) {
    for (int64_t i = 0; i < height; i += kTileRows) {
      avx512::transpose(tile + i * stride, std::min(height - i, kTileRows), stride, scratch);
      for (int64_t j = 0; j < n; ++j) {
        Half* row = to + j * left.row + i;
        split_row(scratch + j * kTileRows, factors + i, kTileRows, row, row + depth);
      }
    }
  } else {
    for (int64_t i = 0; i < height; ++i) {
      Half* row = to + i * left.row;
      split_row(tile + i * stride, factors, static_cast<int32_t>(whole(n)), row, row + depth);
    }
  }
  for (int64_t i = 0; i < whole(rows, kTileRows); ++i) {
    Half* row = to + i * left.row;
    const int64_t used = i < rows ? filled : 0;
    std::fill(row + used, row + depth, Half{0});
    std::fill(row + depth + used, row + 2 * depth, Half{0});
  }
  return left;
}

// The two products of a 64 x 64 tile, by the 8 warps of a block on the tensor cores: scores S = X Y^T of rows X and
// columns Y, and out += M Y, where M stands in the place of S.
//
// E, what X and Y are stored in:
//   Bf16, F16  S from exact products; M as tf32, which has float32's range: a row's weight in M may be tiny. Beside F16
//              its rounding would show: M = high + low
//   float      x = high + low, both tf32: three products, all but low low. They are summed outside of the tensor cores
//              every 8 elements, as those cut off what does not fit where others round.
//   double     as it is
//
// D is taken in chunks that fit into shared memory, zeros behind the last column up to a multiple of 16 and behind the
// last row. A lane has g = lane / 4 and t = lane % 4, as in tensor_core.cuh. Strides are such that no two lanes meet in
// a bank: 4 words beyond a multiple of 32 for X and Y (8: double), 8 for S.
#pragma once

#include <cstdint>
#include <type_traits>

#include "logits.cuh"
#include "reduce.cuh"
#include "tensor_core.cuh"

namespace merc::cuda {

constexpr int kTile = 64;
constexpr int kTileThreads = 256;

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

template <class E>
struct Engine {
  using A = float;
  static constexpr int kChunk = 512 / sizeof(E), kStride = 512 + 16;  // elements, bytes
  static constexpr int kOutChunks = sizeof(E) / 2;                    // 256 columns of out in registers
  static constexpr int kOutWarpRows = 32, kScoreStride = kTile + 8;
};

template <>
struct Engine<double> {
  using A = double;
  static constexpr int kChunk = 32, kStride = 256 + 32;
  static constexpr int kOutChunks = 4;  // 128 columns
  static constexpr int kOutWarpRows = 16, kScoreStride = kTile + 4;
};

// The dynamic shared memory of a block.
template <class E>
struct TileMemory {
  alignas(16) char rows[kTile * Engine<E>::kStride];
  alignas(16) char columns[kTile * Engine<E>::kStride];
  alignas(16) typename Engine<E>::A scores[kTile * Engine<E>::kScoreStride];  // then M
};

// Floats as two tf32 each.
template <int n>
struct Parts {
  uint32_t high[n], low[n];

  __device__ __forceinline__ void set(int i, float x) {
    high[i] = to_tf32(x);
    low[i] = to_tf32(x - __uint_as_float(high[i]));
  }
};

__device__ __forceinline__ void multiply_parts(float (&c)[4], const Parts<4>& a, const Parts<2>& b) {
  float part[4] = {};
  multiply_tf32(part, a.low, b.high);
  multiply_tf32(part, a.high, b.low);
  multiply_tf32(part, a.high, b.high);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    c[i] += part[i];
  }
}

// Two neighbours in a row.
__device__ __forceinline__ float2 neighbours(const Bf16* at) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(at);
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
__device__ __forceinline__ float2 neighbours(const F16* at) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(at);
  return {__half2float(__ushort_as_half(static_cast<uint16_t>(word))),
          __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16)))};
}
__device__ __forceinline__ float2 neighbours(const float* at) { return *reinterpret_cast<const float2*>(at); }
__device__ __forceinline__ double2 neighbours(const double* at) { return *reinterpret_cast<const double2*>(at); }

// Where a thread stands.
struct Lane {
  int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
};

// 32 x 16 scores a warp.
constexpr int kScoreRows = 32, kScoreColumns = 16;

template <class E>
struct Scores {
  float c[2][2][4] = {};  // of 16 x 8

  // Rows and columns are the warp's own, from lane g; `words` of 4 bytes of each.
  __device__ __forceinline__ void add(const char* rows, const char* columns, int words, int t) {
    constexpr int stride = Engine<E>::kStride / 4;
    const uint32_t* x = reinterpret_cast<const uint32_t*>(rows) + t;
    const uint32_t* y = reinterpret_cast<const uint32_t*>(columns) + t;
#pragma unroll 2
    for (int k = 0; k < words; k += 8) {
      if constexpr (sizeof(E) == 2) {
        uint32_t b[2][2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          b[n][0] = y[8 * n * stride + k], b[n][1] = y[8 * n * stride + k + 4];
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint32_t* low = x + 16 * m * stride + k;
          const uint32_t* high = low + 8 * stride;
          const uint32_t a[4] = {low[0], high[0], low[4], high[4]};
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            if constexpr (std::is_same_v<E, Bf16>) {
              multiply_bf16(c[m][n], a, b[n]);
            } else {
              multiply_f16(c[m][n], a, b[n]);
            }
          }
        }
      } else {
        Parts<2> b[2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          b[n].set(0, __uint_as_float(y[8 * n * stride + k]));
          b[n].set(1, __uint_as_float(y[8 * n * stride + k + 4]));
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint32_t* low = x + 16 * m * stride + k;
          const uint32_t* high = low + 8 * stride;
          Parts<4> a;
          a.set(0, __uint_as_float(low[0]));
          a.set(1, __uint_as_float(high[0]));
          a.set(2, __uint_as_float(low[4]));
          a.set(3, __uint_as_float(high[4]));
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            multiply_parts(c[m][n], a, b[n]);
          }
        }
      }
    }
  }

  // From (g, 2t) of the warp's part of the tile.
  __device__ __forceinline__ void put(float* to) const {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float* at = to + 16 * m * Engine<E>::kScoreStride + 8 * n;
        *reinterpret_cast<float2*>(at) = {c[m][n][0], c[m][n][1]};
        *reinterpret_cast<float2*>(at + 8 * Engine<E>::kScoreStride) = {c[m][n][2], c[m][n][3]};
      }
    }
  }
};

template <>
struct Scores<double> {
  double c[4][2][2] = {};  // of 8 x 8

  __device__ __forceinline__ void add(const char* rows, const char* columns, int words, int t) {
    constexpr int stride = Engine<double>::kStride / 8;
    const double* x = reinterpret_cast<const double*>(rows) + t;
    const double* y = reinterpret_cast<const double*>(columns) + t;
#pragma unroll 1
    for (int k = 0; k < words / 2; k += 4) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          multiply_f64(c[m][n], x[8 * m * stride + k], y[8 * n * stride + k]);
        }
      }
    }
  }

  __device__ __forceinline__ void put(double* to) const {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        double* at = to + 8 * m * Engine<double>::kScoreStride + 8 * n;
        at[0] = c[m][n][0], at[1] = c[m][n][1];
      }
    }
  }
};

// A warp's part of out: kOutWarpRows rows, and of each of kOutChunks chunks some pairs of 8 columns. A pair takes every
// second of 16 columns each, as B is read by neighbours: a lane then holds columns 4t..4t+3 of rows g, g + 8, ...
template <class E>
struct Out {
  using A = typename Engine<E>::A;
  static constexpr int kWarpsDown = kTile / Engine<E>::kOutWarpRows, kWarpsAcross = kTileThreads / kWarp / kWarpsDown;
  static constexpr int kColumns = Engine<E>::kChunk / kWarpsAcross, kPairs = kColumns / 16;
  static constexpr int kHalves = sizeof(A) == 4 ? 2 : 1;  // groups of 8 rows of one instruction
  static constexpr int kRows = 8 * kHalves, kSteps = Engine<E>::kOutWarpRows / kRows;

  A c[Engine<E>::kOutChunks][kSteps][kPairs][2][2 * kHalves] = {};

  __device__ __forceinline__ static int first_row(int warp) { return warp / kWarpsAcross * Engine<E>::kOutWarpRows; }
  __device__ __forceinline__ static int first_column(int warp) { return warp % kWarpsAcross * kColumns; }

  // The chunk's `width` columns, of the first `count` rows of Y; `count` and `width` are multiples of 8 and 16.
  __device__ __forceinline__ void add(int chunk, const A* m, const char* columns, int count, int width, Lane lane) {
    m += (first_row(lane.warp) + lane.g) * Engine<E>::kScoreStride;
    const int first = first_column(lane.warp);
    const E* y = reinterpret_cast<const E*>(columns) + first + 2 * lane.g;
    constexpr int stride = Engine<E>::kStride / sizeof(E);
    if (first >= width) {
      return;
    }
    if constexpr (sizeof(A) == 8) {
#pragma unroll 1
      for (int j = 0; j < count; j += 4) {
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          const double2 b = neighbours(y + (j + lane.t) * stride + 16 * pair);
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            const double a = m[8 * step * Engine<E>::kScoreStride + j + lane.t];
            multiply_f64(c[chunk][step][pair][0], a, b.x);
            multiply_f64(c[chunk][step][pair][1], a, b.y);
          }
        }
      }
    } else {
      // The 8 rows j of Y in another order, the same on both sides: 2t where the instruction has t, 2t + 1 for t + 4.
#pragma unroll 1
      for (int j = 0; j < count; j += 8) {
        Parts<4> a[kSteps];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const float2 low = neighbours(m + 16 * step * Engine<E>::kScoreStride + j + 2 * lane.t);
          const float2 high = neighbours(m + (16 * step + 8) * Engine<E>::kScoreStride + j + 2 * lane.t);
          a[step].set(0, low.x);
          a[step].set(1, high.x);
          a[step].set(2, low.y);
          a[step].set(3, high.y);
        }
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          if (first + 16 * pair < width) {
            const float2 even = neighbours(y + (j + 2 * lane.t) * stride + 16 * pair);
            const float2 odd = neighbours(y + (j + 2 * lane.t + 1) * stride + 16 * pair);
            Parts<2> b[2];
            b[0].set(0, even.x);
            b[0].set(1, odd.x);
            b[1].set(0, even.y);
            b[1].set(1, odd.y);
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                float(&to)[4] = c[chunk][step][pair][i];
                if constexpr (sizeof(E) == 4) {
                  multiply_parts(to, a[step], b[i]);
                } else {
                  if constexpr (std::is_same_v<E, F16>) {
                    multiply_tf32(to, a[step].low, b[i].high);
                  }
                  multiply_tf32(to, a[step].high, b[i].high);
                }
              }
            }
          }
        }
      }
    }
  }

  // To rows of `width`, from column `from` on; `rows` of them are there.
  __device__ __forceinline__ void put(A* to, int rows, int width, int from, Lane lane) const {
#pragma unroll
    for (int chunk = 0; chunk < Engine<E>::kOutChunks; ++chunk) {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const int column = from + chunk * Engine<E>::kChunk + first_column(lane.warp) + 16 * pair + 4 * lane.t;
#pragma unroll
        for (int i = 0; i < kSteps * kHalves; ++i) {
          const int row = first_row(lane.warp) + 8 * i + lane.g;
          if (row < rows && column < width) {
            const auto& two = c[chunk][i / kHalves][pair];
            const int high = 2 * (i % kHalves);
            put_four(to + int64_t{row} * width + column, width - column, width % 4 == 0,
                     two[0][high], two[1][high], two[0][high + 1], two[1][high + 1]);
          }
        }
      }
    }
  }

 private:
  __device__ __forceinline__ static void put_four(A* to, int left, bool whole, A first, A second, A third, A fourth) {
    if (whole) {
      struct alignas(16) Four {
        A values[4];
      };
      *reinterpret_cast<Four*>(to) = {first, second, third, fourth};
    } else {
      to[0] = first;
      if (left > 1) to[1] = second;
      if (left > 2) to[2] = third;
      if (left > 3) to[3] = fourth;
    }
  }
};

// The products of a block: rows [first_row, first_row + 64) of the `z` of one group, before `end_row`.
template <class E>
class Product {
 public:
  using A = typename Engine<E>::A;

  __device__ Product(TileMemory<E>& memory, const E* z, int width, int first_row, int end_row)
      : memory_(memory), z_(z), width_(width), first_row_(first_row), end_row_(end_row) {}

  __device__ int chunks() const { return (width_ + Engine<E>::kChunk - 1) / Engine<E>::kChunk; }

  // memory.scores := those of columns [first, first + 64) before `end`. Leaves chunk `last` of the columns in memory.
  __device__ __forceinline__ void scores(int first, int end, int last) {
    const Lane lane;
    const int row = lane.warp / (kTile / kScoreColumns) * kScoreRows;
    const int column = lane.warp % (kTile / kScoreColumns) * kScoreColumns;
    const bool any = first_row_ + row < end_row_ && first + column < end;
    Scores<E> scores;
    for (int i = 1; i <= chunks(); ++i) {
      const int chunk = (last + i) % chunks();
      stage_columns(first, end, chunk, chunk != resident_);
      if (any) {
        scores.add(memory_.rows + (row + lane.g) * Engine<E>::kStride,
                   memory_.columns + (column + lane.g) * Engine<E>::kStride,
                   padded(chunk) * static_cast<int>(sizeof(E)) / 4, lane.t);
      }
    }
    scores.put(memory_.scores + (row + lane.g) * Engine<E>::kScoreStride + column + 2 * lane.t);
    __syncthreads();
  }

  // out += M Y of the tile whose scores were taken, for the chunks from `from` on, of which the first is in memory.
  __device__ __forceinline__ void add_to(Out<E>& out, int first, int end, int from) {
    const int count = end - first < kTile ? (end - first + 7) / 8 * 8 : kTile;
    __syncthreads();  // M is there
#pragma unroll
    for (int chunk = 0; chunk < Engine<E>::kOutChunks; ++chunk) {
      if (from + chunk < chunks()) {
        if (chunk > 0) {
          stage_columns(first, end, from + chunk, false);
        }
        out.add(chunk, memory_.scores, memory_.columns, count, padded(from + chunk), Lane());
      }
    }
  }

 private:
  __device__ int width(int chunk) const {
    const int left = width_ - chunk * Engine<E>::kChunk;
    return left < Engine<E>::kChunk ? left : Engine<E>::kChunk;
  }

  __device__ int padded(int chunk) const { return (width(chunk) + 15) / 16 * 16; }

  __device__ __forceinline__ void stage_columns(int first, int end, int chunk, bool rows_too) {
    __syncthreads();  // what lies there is done with
    if (rows_too) {
      stage(memory_.rows, first_row_, end_row_, chunk);
      resident_ = chunk;
    }
    stage(memory_.columns, first, end, chunk);
    __syncthreads();
  }

  __device__ __forceinline__ void stage(char* to, int first, int end, int chunk) const {
    const int64_t start = int64_t{chunk} * Engine<E>::kChunk;
    if (width_ * sizeof(E) % 16 == 0) {
      constexpr int vectors = Engine<E>::kChunk * sizeof(E) / 16, step = kTileThreads / vectors;
      const int vector = threadIdx.x % vectors, row = threadIdx.x / vectors;
      const int column = vector * (16 / static_cast<int>(sizeof(E)));
      const E* from = z_ + int64_t{first + row} * width_ + start + column;
      if (column < padded(chunk)) {
#pragma unroll 4
        for (int i = 0; i < kTile; i += step) {
          const bool real = first + row + i < end && column < width(chunk);
          *reinterpret_cast<uint4*>(to + (row + i) * Engine<E>::kStride + 16 * vector) =
              real ? __ldg(reinterpret_cast<const uint4*>(from + int64_t{i} * width_)) : uint4{0, 0, 0, 0};
        }
      }
      return;
    }
    for (int row = threadIdx.x / kWarp; row < kTile; row += kTileThreads / kWarp) {
      for (int column = threadIdx.x % kWarp; column < padded(chunk); column += kWarp) {
        const bool real = first + row < end && column < width(chunk);
        reinterpret_cast<E*>(to + row * Engine<E>::kStride)[column] =
            real ? z_[int64_t{first + row} * width_ + start + column] : E{};
      }
    }
  }

  TileMemory<E>& memory_;
  const E* z_;
  int width_, first_row_, end_row_, resident_ = -1;
};

}  // namespace merc::cuda

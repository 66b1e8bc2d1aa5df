// The fragments of a warp's share of the two products of a tile.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tile.cuh"

namespace merc::focal_contrastive::cuda {

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

  __device__ __forceinline__ void add(const Scores& other) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          c[m][n][i] += other.c[m][n][i];
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

  __device__ __forceinline__ void add(const Scores& other) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        c[m][n][0] += other.c[m][n][0], c[m][n][1] += other.c[m][n][1];
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
                float (&to)[4] = c[chunk][step][pair][i];
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
            put_four(
                to + int64_t{row} * width + column, width - column, width % 4 == 0, two[0][high], two[1][high],
                two[0][high + 1], two[1][high + 1]);
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

}  // namespace merc::focal_contrastive::cuda

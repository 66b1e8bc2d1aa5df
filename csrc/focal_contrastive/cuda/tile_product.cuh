// The two products of a 64 x 64 tile, by the 8 warps of a block on the tensor cores: scores S = X Y^T of rows X and
// columns Y, and out += M Y, where M stands in the place of S.
#pragma once

#include <cstdint>

#include "tile.cuh"
#include "tile_fragments.cuh"

namespace merc::focal_contrastive::cuda {

// The products of a block: rows [first_row, first_row + 64) of the `z` of one group, before `end_row`.
template <class E>
class TileProduct {
 public:
  using A = typename Engine<E>::A;

  __device__ TileProduct(TileMemory<E>& memory, const E* z, int width, int first_row, int end_row)
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
        Scores<E> part;  // of the chunk: a long sum is rounded less by parts
        part.add(
            memory_.rows + (row + lane.g) * Engine<E>::kStride,
            memory_.columns + (column + lane.g) * Engine<E>::kStride, padded(chunk) * static_cast<int>(sizeof(E)) / 4,
            lane.t);
        scores.add(part);
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

}  // namespace merc::focal_contrastive::cuda

// Sums and merges across a warp, a block and a grid, each in one fixed order: the same bits on every run.
#pragma once

#include <cstdint>
#include <cstring>

#include "base2.cuh"

namespace merc::cuda {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// A plain struct, word by word.
template <class T, class Move>
__device__ __forceinline__ T move_words(const T& value, const Move& move) {
  static_assert(sizeof(T) % sizeof(uint32_t) == 0);
  uint32_t words[sizeof(T) / sizeof(uint32_t)];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (uint32_t& word : words) {
    word = move(word);
  }
  T moved;
  memcpy(&moved, words, sizeof(T));
  return moved;
}

// What is merged: anything with a + or a larger().
struct Add {
  template <class T>
  __device__ T operator()(const T& a, const T& b) const {
    return a + b;
  }
};

struct Larger {
  template <class T>
  __device__ T operator()(const T& a, const T& b) const {
    return larger(a, b);
  }
};

// Merges over each run of `lanes` lanes, a power of two; lane 0 of the run holds what counts.
template <class T, class Merge>
__device__ __forceinline__ T merge_lanes(T value, int lanes, const Merge& merge) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value = merge(value, move_words(value, [&](uint32_t word) { return __shfl_xor_sync(kWholeWarp, word, distance); }));
  }
  return value;
}

// Merges over `warps` whole warps of which this is number `warp`; every thread gets the same bits. `shared` has kWarp
// elements; more than one warp must be the whole block.
template <class T, class Merge>
__device__ __forceinline__ T merge_warps(T value, T empty, T* shared, int warp, int warps, const Merge& merge) {
  const int lane = threadIdx.x % kWarp;
  value = merge_lanes(value, kWarp, merge);
  if (warps > 1) {
    __syncthreads();  // nobody reads what the last call left in `shared`
    if (lane == 0) {
      shared[warp] = value;
    }
    __syncthreads();
    value = merge_lanes(lane < warps ? shared[lane] : empty, kWarp, merge);
  }
  return move_words(value, [](uint32_t word) { return __shfl_sync(kWholeWarp, word, 0); });
}

// A sum of `losses` over `kept` rows. In double: the rounding of a long sum of float32 would show.
struct Total {
  double loss, kept;
};

__device__ inline Total operator+(const Total& a, const Total& b) { return {a.loss + b.loss, a.kept + b.kept}; }

// The sum over a block, of threads numbered x first; blockDim.x is a multiple of kWarp.
__device__ __forceinline__ Total block_total(Total mine) {
  __shared__ Total shared[kWarp];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int threads = blockDim.x * blockDim.y;
  return merge_warps(mine, Total{0, 0}, shared, thread / kWarp, threads / kWarp, Add());
}

// True in all threads of the block that comes last of `blocks`: it sees what the others wrote before. `counter` belongs
// to the call, is 0 before the launch, and 0 again afterwards.
__device__ __forceinline__ bool comes_last(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    last = atomicInc(counter, blocks - 1) == blocks - 1;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// The sum over `blocks` blocks of which this is number `block`, given to `done` in thread 0 of the block that ends
// last. `partials` holds a Total a block; `counter` as above.
template <class Done>
__device__ __forceinline__ void blocks_total(
    Total mine, Total* partials, unsigned* counter, unsigned block, unsigned blocks, const Done& done) {
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y;
  Total total = block_total(mine);
  if (blocks > 1) {
    if (thread == 0) {
      __stcg(&partials[block].loss, total.loss);
      __stcg(&partials[block].kept, total.kept);
    }
    if (!comes_last(counter, blocks)) {
      return;
    }
    total = {0, 0};
    for (unsigned i = thread; i < blocks; i += threads) {
      total.loss += __ldcg(&partials[i].loss);
      total.kept += __ldcg(&partials[i].kept);
    }
    total = block_total(total);
  }
  if (thread == 0) {
    done(total);
  }
}

}  // namespace merc::cuda

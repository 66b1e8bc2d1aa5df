// What the kernels of the focal contrastive loss are given, and what they share. Logarithms are to base 2, and
// t = s / ln 2.
#pragma once

#include <cstdint>
#include <limits>

#include "../focal.h"
#include "../../cuda/base2.cuh"
#include "../../cuda/logits.cuh"
#include "../../cuda/reduce.cuh"

namespace merc::cuda::contrastive {

// For focal.h.
template <class A>
struct Math {
  MERC_BOTH static A exp(A x) { return power2(x * A(kLog2e)); }
  MERC_BOTH static A log(A x) { return A(kLn2) * logarithm2(x); }
  MERC_BOTH static A minus_expm1(A x) { return -::expm1(x); }
};

// What the backward pass needs of a row beside z: L = max + log_sum, in two parts that are rounded apart; G; a. A row
// that is no anchor or has no positive: (inf, 0, 0, 0).
template <class A>
struct Numbers {
  A max, log_sum, g, a;
};
constexpr int kNumbers = 4;

// Rows of a group: embeddings, prototypes, refs. Anchors are the first of them, candidates the last.
template <class A>
struct Problem {
  const void* z;         // (G, rows, width)
  const int64_t* index;  // (G, rows): the label, ignore_index where the row is not kept
  Numbers<A>* numbers;   // (G, rows)
  int64_t groups;
  int rows, embeddings, anchors, first_candidate, width;
  const A* learnable;    // the temperature, or null
  A temperature, gamma;
  Focal focal;
  Power power;
  bool detached, normalized;
  int64_t ignore_index;

  __device__ A tau() const { return learnable ? *learnable : temperature; }

  __device__ Factor<A> similarity(A cosine, A tau) const {
    switch (power) {
      case Power::zero:
        return {A(1), A(0)};
      case Power::one:
        return similarity_factor<Math<A>, Power::one>(cosine, tau, gamma);
      case Power::two:
        return similarity_factor<Math<A>, Power::two>(cosine, tau, gamma);
      default:
        return similarity_factor<Math<A>, Power::any>(cosine, tau, gamma);
    }
  }

  __device__ Factor<A> probability(A l) const {
    switch (power) {
      case Power::zero:
        return {A(1), A(0)};
      case Power::one:
        return probability_factor<Math<A>, Power::one>(l, gamma);
      case Power::two:
        return probability_factor<Math<A>, Power::two>(l, gamma);
      default:
        return probability_factor<Math<A>, Power::any>(l, gamma);
    }
  }
};

// A block's threads in the epilogue of a tile: four a row, each with every fourth pair of its columns.
constexpr int kLanesARow = 4;

__device__ __forceinline__ int tile_row() { return threadIdx.x / kLanesARow; }
__device__ __forceinline__ int tile_column(int i) { return i / 2 * 8 + threadIdx.x % kLanesARow * 2 + i % 2; }

// Tiles [first, end) of number `split` of `splits`.
struct Share {
  int first, end;

  __device__ Share(int tiles, int split, int splits)
      : first(static_cast<int>(int64_t{tiles} * split / splits)),
        end(static_cast<int>(int64_t{tiles} * (split + 1) / splits)) {}
};

}  // namespace merc::cuda::contrastive

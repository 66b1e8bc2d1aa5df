// What the kernels of the focal contrastive loss are given, and what they share. Logarithms are to base 2, and
// t = s / ln 2.
#pragma once

#include <cstdint>
#include <limits>

#include "../../cuda/base2.cuh"
#include "../../cuda/elements.cuh"
#include "../../cuda/reduce.cuh"
#include "../arguments.h"
#include "../focal.h"

namespace merc::focal_contrastive::cuda {

using namespace merc::cuda;

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
struct RowStats {
  A max, log_sum, g, a;
};
static_assert(sizeof(RowStats<float>) == kStats * sizeof(float));

// Rows of a group: embeddings, prototypes, refs. Anchors are the first of them, candidates the last.
template <class A>
struct Batch {
  Options<A> options;
  Power power;
  const void* z;         // (G, rows, width)
  const int64_t* index;  // (G, rows): the label, ignore_index where the row is not kept
  RowStats<A>* stats;    // (G, rows)
  int64_t groups;
  int rows, embeddings, anchors, first_candidate, width;
  const A* learnable;  // the temperature, or null

  Batch(const Arguments& arguments, const Tensor& z_, const Tensor& stats_, const Tensor& index_)
      : options(arguments.options.in<A>()),
        power(power_of(arguments.options.gamma)),
        z(z_.const_data_ptr()),
        index(static_cast<const int64_t*>(index_.const_data_ptr())),
        stats(static_cast<RowStats<A>*>(stats_.mutable_data_ptr())),
        groups(arguments.groups),
        rows(static_cast<int>(arguments.rows())),
        embeddings(static_cast<int>(arguments.sources[0].rows)),
        anchors(embeddings + static_cast<int>(options.prototype_anchors ? arguments.sources[1].rows : 0)),
        first_candidate(options.ref_only ? embeddings : 0),
        width(static_cast<int>(arguments.width)),
        learnable(data_of<A>(arguments.temperature_tensor)) {}

  __device__ A tau() const { return learnable ? *learnable : options.temperature; }

  __device__ Factor<A> similarity(A cosine, A tau) const {
    switch (power) {
      case Power::zero:
        return raise<Math<A>, Power::zero>(A(0), options);
      case Power::one:
        return similarity_factor<Math<A>, Power::one>(cosine, tau, options);
      case Power::two:
        return similarity_factor<Math<A>, Power::two>(cosine, tau, options);
      default:
        return similarity_factor<Math<A>, Power::any>(cosine, tau, options);
    }
  }

  __device__ Factor<A> probability(A l) const {
    switch (power) {
      case Power::zero:
        return raise<Math<A>, Power::zero>(A(0), options);
      case Power::one:
        return probability_factor<Math<A>, Power::one>(l, options);
      case Power::two:
        return probability_factor<Math<A>, Power::two>(l, options);
      default:
        return probability_factor<Math<A>, Power::any>(l, options);
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

}  // namespace merc::focal_contrastive::cuda

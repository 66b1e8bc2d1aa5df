// The gradient by the rows z, before it is scaled and goes back through the normalisation:
//
//   W_ij = a_i ([j in P(i)] dg/ds(s_ij, L_i) + e^(s_ij - L_i) G_i)    tau dz_i = sum_j (W_ij + W_ji) z_j
//
// A block owns 64 rows, some columns of the result, and takes some tiles of columns j; `unpack` sums up over the blocks
// that share the rows. The temperature's gradient is -sum W s / tau, without h' of the similarity, which knows no
// temperature.
#pragma once

#include <cstdint>

#include "batch.cuh"
#include "../../cuda/launch.cuh"
#include "tile_product.cuh"

namespace merc::focal_contrastive::cuda {

template <class A>
struct BackwardTargets {
  const A* grad;
  bool grad_is_scalar;  // or (G, embeddings)
  const A* divisor;
  int first_row, end_row;        // the rows wanted
  int row_blocks, splits, outs;  // outs: parts of the width
  A* parts;                      // (splits, G, rows, width)
  double* slopes;                // (G, row_blocks, splits), or null: no temperature is wanted
};

// A row as both its own anchor and another's candidate.
template <class A>
struct Side {
  RowStats<A> stats;  // a with what reaches it from above
  int64_t label;
  bool candidate;

  __device__ Side(const Batch<A>& p, const BackwardTargets<A>& to, int64_t group, int row, bool real) {
    stats = {std::numeric_limits<A>::infinity(), 0, 0, 0};
    label = p.options.ignore_index;
    if (real) {
      stats = p.stats[group * p.rows + row];
      label = p.index[group * p.rows + row];
    }
    if (stats.a != A(0)) {
      stats.a *= to.grad[to.grad_is_scalar ? 0 : group * p.embeddings + row] / *to.divisor;
    }
    candidate = label != p.options.ignore_index && row >= p.first_candidate;
  }
};

// The columns of a tile.
template <class A>
struct Sides {
  RowStats<A> stats[kTile];
  int64_t labels[kTile];
};

// W of one anchor and one candidate; and W without h', times s, is added to `slope`.
template <class A>
__device__ __forceinline__ A weight(
    const Batch<A>& p, const RowStats<A>& of, A cosine, A per_tau, bool positive, const Factor<A>& of_cosine,
    A& slope) {
  const A l2 = fma(cosine, per_tau, -of.max) - of.log_sum;
  A sum = power2(l2) * of.g, slope_sum = sum;
  if (positive) {
    const A l = A(kLn2) * l2;
    if (p.options.focal == Focal::similarity) {
      sum += slope_by_s(of_cosine, l, p.options.detach_focal);
      slope_sum -= of_cosine.h;
    } else {
      sum += slope_by_s(p.probability(l), l, p.options.detach_focal);
      slope_sum = sum;
    }
  }
  slope += of.a * slope_sum * (cosine * per_tau);
  return of.a * sum;
}

// A thread's 16 elements of M in the place of its scores. Returns the sum of W s over its row as anchor, over ln 2.
template <class A>
__device__ __forceinline__ A replace_scores(
    const Batch<A>& p, A* scores, const Side<A>& row, const Sides<A>& columns, int own_column, int first, A tau) {
  const A per_tau = A(kLog2e) / tau;
  A slope = 0, unused = 0;
#pragma unroll(sizeof(A) == 4 ? 2 : 1)
  for (int i = 0; i < kTile / kLanesARow; ++i) {
    const int column = tile_column(i);
    const RowStats<A> stats = columns.stats[column];
    const int64_t label = columns.labels[column];
    const A cosine = scores[column];
    const bool positive = row.label == label, apart = column != own_column;
    const bool candidate = label != p.options.ignore_index && first + column >= p.first_candidate;
    const Factor<A> factor =
        positive && p.options.focal == Focal::similarity ? p.similarity(cosine, tau) : Factor<A>{A(0), A(0)};
    A m = 0;
    if (apart && candidate && row.stats.a != A(0)) {
      m += weight(p, row.stats, cosine, per_tau, positive, factor, slope);
    }
    if (apart && row.candidate && stats.a != A(0)) {
      m += weight(p, stats, cosine, per_tau, positive, factor, unused);
    }
    scores[column] = m;
  }
  return slope;
}

template <class E>
__global__ void __launch_bounds__(kTileThreads, 1) backward_tiles(
    const __grid_constant__ Batch<typename Engine<E>::A> p,
    const __grid_constant__ BackwardTargets<typename Engine<E>::A> to) {
  using A = typename Engine<E>::A;
  __shared__ Sides<A> columns;
  TileMemory<E>& memory = dynamic_shared<TileMemory<E>>();
  const int out = blockIdx.x % to.outs;
  const int64_t rest = blockIdx.x / to.outs, row_block = rest / to.splits;
  const int split = static_cast<int>(rest % to.splits);
  const int64_t group = row_block / to.row_blocks;
  const int first_row = to.first_row + static_cast<int>(row_block % to.row_blocks) * kTile;
  const int end_row = to.end_row - first_row < kTile ? to.end_row : first_row + kTile;
  const int own = first_row + tile_row();
  const Side<A> row(p, to, group, own, own < end_row);
  const A tau = p.tau();
  // Rows that are no candidates meet candidates only, and rows that are no anchors meet anchors only.
  const int first_column = end_row <= p.first_candidate ? p.first_candidate : 0;
  const int end_column = first_row >= p.anchors ? p.anchors : p.rows;
  const Share tiles((end_column - first_column + kTile - 1) / kTile, split, to.splits);
  const int first_chunk = out * Engine<E>::kOutChunks;
  TileProduct<E> product(memory, static_cast<const E*>(p.z) + group * p.rows * p.width, p.width, first_row, end_row);
  Out<E> sum;
  double slope = 0;
  for (int tile = tiles.first; tile < tiles.end; ++tile) {
    const int first = first_column + tile * kTile;
    __syncthreads();
    if (threadIdx.x < kTile) {
      const int column = first + static_cast<int>(threadIdx.x);
      const Side<A> side(p, to, group, column, column < end_column);
      columns.stats[threadIdx.x] = side.stats;
      columns.labels[threadIdx.x] = side.label;
    }
    product.scores(first, end_column, first_chunk);
    slope +=
        replace_scores(p, memory.scores + tile_row() * Engine<E>::kScoreStride, row, columns, own - first, first, tau);
    product.add_to(sum, first, end_column, first_chunk);
  }
  const int64_t rows = to.end_row - to.first_row;
  sum.put(
      to.parts + ((split * p.groups + group) * rows + first_row - to.first_row) * p.width, end_row - first_row, p.width,
      first_chunk * Engine<E>::kChunk, Lane());
  if (to.slopes && out == 0) {
    const Total total = block_total({slope * kLn2, 0});
    if (threadIdx.x == 0) {
      to.slopes[row_block * to.splits + split] = total.loss;
    }
  }
}

}  // namespace merc::focal_contrastive::cuda

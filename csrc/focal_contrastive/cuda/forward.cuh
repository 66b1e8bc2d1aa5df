// The value of the loss, and what the backward pass needs of each anchor.
//
//   L_i = log sum_j e^s_ij    loss_i = w / |P| sum_P -h (s - L)    G_i = sum_P dg/dL    a_i = w / |P|
//
// A block takes 64 anchors and some tiles of candidates. Where several share the anchors, the one that comes last
// merges their sums, always in the same order. Unit rows bound s by 1 / tau, which then stands for the maximum as long
// as nothing underflows. h of the probability needs L first: a second launch, over the positives.
#pragma once

#include <cstdint>

#include "batch.cuh"
#include "../../cuda/launch.cuh"
#include "tile_product.cuh"

namespace merc::focal_contrastive::cuda {

enum class Pass : int { only, first, second };  // all sums; L and |P|; then the sums over positives

// Over a row's candidates so far, those of the second pass without a maximum.
template <class A>
struct RowSums {
  A max, sum;          // sum 2^(t - max)
  A weighted, weight;  // over positives: h (t - max) and h; in the second pass -h l and dg/dL
  A positives;

  // To another maximum; without a candidate there is nothing to move.
  __device__ __forceinline__ void move(A to) {
    if (max != to) {
      const A shift = max - to;
      sum *= power2(shift);
      weighted += weight == A(0) ? A(0) : shift * weight;
      max = to;
    }
  }

  __device__ __forceinline__ void add(const RowSums& other) {
    sum += other.sum;
    weighted += other.weighted;
    weight += other.weight;
    positives += other.positives;
  }
};

template <class A>
struct ForwardTargets {
  Pass pass;
  Reduction reduction;
  A* loss;  // the scalar, or (G, embeddings)
  A* divisor;
  const A* class_weights;  // or null
  int row_blocks, splits;
  RowSums<A>* sums;    // (G, row_blocks, splits, kTile)
  unsigned* counters;  // (G, row_blocks), where splits > 1
  Total* totals;       // (G, row_blocks)
  unsigned* counter;   // of row blocks
};

// A thread's 16 scores of a tile.
template <class A>
__device__ __forceinline__ void absorb(
    const Batch<A>& p, const ForwardTargets<A>& to, const A* scores, const int64_t* labels, int64_t label,
    int own_column, A tau, const RowStats<A>& stats, bool bounded, RowSums<A>& sums) {
  const A per_tau = A(kLog2e) / tau;
  if (!bounded && to.pass != Pass::second) {
    A max = sums.max;
#pragma unroll 4
    for (int i = 0; i < kTile / kLanesARow; ++i) {
      const int column = tile_column(i);
      if (labels[column] != p.options.ignore_index && column != own_column) {
        max = larger(max, scores[column] * per_tau);
      }
    }
    sums.move(max);
  }
#pragma unroll(sizeof(A) == 4 ? 4 : 1)
  for (int i = 0; i < kTile / kLanesARow; ++i) {
    const int column = tile_column(i);
    if (labels[column] == p.options.ignore_index || column == own_column) {
      continue;
    }
    const A cosine = scores[column], t = fma(cosine, per_tau, -sums.max);
    const bool positive = labels[column] == label;
    if (to.pass != Pass::second) {
      sums.sum += power2(t);
      sums.positives += positive ? A(1) : A(0);
      if (positive && to.pass == Pass::only) {
        const A h = p.similarity(cosine, tau).h;
        sums.weighted += h * t;
        sums.weight += h;
      }
    } else if (positive) {
      const A l = A(kLn2) * (t - stats.log_sum);
      const Factor<A> factor = p.probability(l);
      sums.weighted -= factor.h * l;
      sums.weight -= slope_by_s(factor, l, p.options.detach_focal);
    }
  }
}

// The row's loss; leaves its stats.
template <class A>
__device__ __forceinline__ A
finish_row(const Batch<A>& p, const ForwardTargets<A>& to, const RowSums<A>& sums, int64_t label, RowStats<A>& stats) {
  if (to.pass == Pass::second) {
    stats.g = sums.weight;
    return stats.a * sums.weighted;
  }
  if (sums.positives == A(0)) {
    stats = {std::numeric_limits<A>::infinity(), 0, 0, 0};
    return 0;
  }
  const A a = (to.class_weights ? to.class_weights[label] : A(1)) / sums.positives;
  stats = {sums.max, logarithm2(sums.sum), sums.weight, a};
  return a * A(kLn2) * (stats.log_sum * sums.weight - sums.weighted);
}

template <class E>
__global__ void __launch_bounds__(kTileThreads, 2) forward_tiles(
    const __grid_constant__ Batch<typename Engine<E>::A> p,
    const __grid_constant__ ForwardTargets<typename Engine<E>::A> to) {
  using A = typename Engine<E>::A;
  __shared__ int64_t labels[kTile];
  TileMemory<E>& memory = dynamic_shared<TileMemory<E>>();
  const int64_t row_block = blockIdx.x / to.splits;
  const int split = blockIdx.x % to.splits;
  const int64_t group = row_block / to.row_blocks;
  const int first_row = static_cast<int>(row_block % to.row_blocks) * kTile, row = first_row + tile_row();
  const int64_t* index = p.index + group * p.rows;
  // A row that is no anchor, or not kept, goes along: it has no positive.
  const bool anchor = group < p.groups && row < p.anchors;
  const int64_t label = anchor ? index[row] : p.options.ignore_index;
  const bool kept = label != p.options.ignore_index;
  const A tau = p.tau();
  const bool bounded = p.options.normalize && tau >= A(kLeastBounded);
  RowStats<A> stats{};
  if (to.pass == Pass::second && anchor) {
    stats = p.stats[group * p.rows + row];
  }
  RowSums<A> sums{
      to.pass == Pass::second ? stats.max
      : bounded               ? A(kLog2e) / tau
                              : std::numeric_limits<A>::lowest(),
      0, 0, 0, 0};

  const int candidates = group < p.groups ? p.rows - p.first_candidate : 0;
  const Share tiles((candidates + kTile - 1) / kTile, split, to.splits);
  TileProduct<E> product(memory, static_cast<const E*>(p.z) + group * p.rows * p.width, p.width, first_row, p.anchors);
  for (int tile = tiles.first; tile < tiles.end; ++tile) {
    const int first = p.first_candidate + tile * kTile;
    __syncthreads();
    if (threadIdx.x < kTile) {
      const int column = first + threadIdx.x;
      labels[threadIdx.x] = column < p.rows ? index[column] : p.options.ignore_index;
    }
    product.scores(first, p.rows, 0);
    absorb(
        p, to, memory.scores + tile_row() * Engine<E>::kScoreStride, labels, label, row - first, tau, stats, bounded,
        sums);
  }

  sums.move(merge_lanes(sums.max, kLanesARow, Larger()));
  sums = merge_lanes(sums, kLanesARow, [](RowSums<A> a, const RowSums<A>& b) {
    a.add(b);
    return a;
  });
  if (to.splits > 1) {
    RowSums<A>* const parts = to.sums + row_block * to.splits * kTile + tile_row();
    if (threadIdx.x % kLanesARow == 0) {
      parts[split * kTile] = sums;
    }
    if (!comes_last(&to.counters[row_block], to.splits)) {
      return;
    }
    A max = std::numeric_limits<A>::lowest();
    for (int i = 0; i < to.splits; ++i) {
      max = larger(max, __ldcg(&parts[i * kTile].max));
    }
    sums = {max, 0, 0, 0, 0};
    for (int i = 0; i < to.splits; ++i) {
      const RowSums<A>* part = parts + i * kTile;
      RowSums<A> moved{
          __ldcg(&part->max), __ldcg(&part->sum), __ldcg(&part->weighted), __ldcg(&part->weight),
          __ldcg(&part->positives)};
      moved.move(max);
      sums.add(moved);
    }
  }

  Total mine{0, 0};
  if (anchor && threadIdx.x % kLanesARow == 0) {
    const A loss = finish_row(p, to, sums, label, stats);
    p.stats[group * p.rows + row] = stats;
    const bool counted = to.reduction == Reduction::mean ? stats.max < std::numeric_limits<A>::infinity() : kept;
    mine = {static_cast<double>(loss), counted ? 1.0 : 0.0};
    if (to.reduction == Reduction::none && to.pass != Pass::first) {
      to.loss[group * p.embeddings + row] = loss;
    }
  }
  if (to.pass == Pass::first) {
    return;
  }
  const unsigned row_blocks = gridDim.x / to.splits;
  blocks_total(mine, to.totals, to.counter, static_cast<unsigned>(row_block), row_blocks, [&](const Total& total) {
    const bool counting = to.reduction == Reduction::mean || to.reduction == Reduction::batchmean;
    const double divisor = counting && total.kept > 1 ? total.kept : 1;
    *to.divisor = static_cast<A>(divisor);
    if (to.reduction != Reduction::none) {
      *to.loss = static_cast<A>(total.loss / divisor);
    }
  });
}

}  // namespace merc::focal_contrastive::cuda

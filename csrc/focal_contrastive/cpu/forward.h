// The forward pass: sums over the tiles, and from them the loss and what the backward pass needs of each row.
//
//   loss_i = a_i (L' H_i - V_i), or -a_i V_i where V and H are sums with L;  a_i = w / |P(i)|,  L' = m + log E
// with E, H and V of sums.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "batch.h"

namespace merc::focal_contrastive::cpu {

namespace {

// What a row adds up over its tiles. Saved of it are m, G, a and log E; L' = m + log E.
struct RowSums {
  double e = 0, v = 0, h = 0;
  double row_max = -std::numeric_limits<double>::infinity();  // E counts from here on
};

template <class A>
void add_sums(const Range& range, const TileSums<A>& sums, bool bounded, bool second, RowSums* rows) {
  for (int64_t i = 0; i < range.size(); ++i) {
    RowSums& row = rows[range.begin + i];
    if (!second && bounded) {
      row.e += sums.e[i];
    } else if (!second) {
      const double row_max = sums.row_max[i];
      if (row_max > row.row_max) {
        row.e = row.e * std::exp(row.row_max - row_max) + sums.e[i];
        row.row_max = row_max;
      } else {
        row.e += sums.e[i] * std::exp(row_max - row.row_max);
      }
    }
    row.v += sums.v[i];
    row.h += sums.h[i];
  }
}

// The sums of all rows; where L' is given, those that need it.
template <class A>
void sum_tiles(Batch<A>& batch, const TileOptions<A>& o, const Logarithms<A>& l, std::vector<RowSums>& rows) {
  const Kernels<A>& kernel = batch.kernel();
  const Layout& layout = batch.layout();
  const bool second = l.log_e != nullptr;
  const auto from = [&](int64_t row) { return second ? Logarithms<A>{l.row_max + row, l.log_e + row} : l; };
  const Tensor scratch = batch.scratch(8);
  const auto sums = [&](int64_t worker, int part) {
    A* first = batch.scratch_of(scratch, worker) + 4 * part * batch.stride();
    return TileSums<A>{first, first + batch.stride(), first + 2 * batch.stride(), first + 3 * batch.stride()};
  };
  const auto skip = [&](const Tile& tile) { return second && !layout.has_positives(tile); };
  run_tiles(
      layout, batch.workers(),
      [&](const Tile& tile, int64_t worker) {
        if (skip(tile)) {
          return;
        }
        A* cosines = batch.tile(tile, worker);
        const View view = batch.cosines(tile, cosines);
        if (!second && o.needs_l()) {
          std::fill_n(sums(worker, 0).v, 2 * batch.stride(), A(0));
        }
        kernel.sum_tile(
            view, o, cosines, from(view.rows.begin), from(view.columns.begin), sums(worker, 0), sums(worker, 1));
      },
      [&](const Tile& tile, int64_t worker) {
        if (skip(tile)) {
          return;
        }
        add_sums(layout.blocks()[tile.rows].rows, sums(worker, 0), o.bounded, second, rows.data());
        if (tile.mutual) {
          add_sums(layout.blocks()[tile.columns].rows, sums(worker, 1), o.bounded, second, rows.data());
        }
      });
  batch.passed();
}

struct Loss {
  Tensor loss, divisor, stats;
};

template <class A>
Loss forward(
    Batch<A>& batch, const std::vector<int64_t>& label_of, const std::optional<Tensor>& class_weights,
    Reduction reduction) {
  const Arguments& arguments = batch.arguments();
  const Sizes& sizes = batch.sizes();
  const Layout& layout = batch.layout();
  const TileOptions<A> options(batch.options());
  const int64_t rows = sizes.rows();
  std::vector<RowSums> sums(batch.rows());
  sum_tiles<A>(batch, options, {}, sums);
  std::vector<A> row_max(sums.size() + kLanes), log_e(sums.size() + kLanes);
  for (size_t row = 0; row < sums.size(); ++row) {
    row_max[row] = static_cast<A>(options.bounded ? 0 : sums[row].row_max);
    log_e[row] = static_cast<A>(std::log(sums[row].e));
  }
  if (options.needs_l()) {
    sum_tiles<A>(batch, options, {row_max.data(), log_e.data()}, sums);
  }

  const bool none = reduction == Reduction::none;
  Tensor loss = empty(none ? arguments.row_shape() : std::vector<int64_t>{}, kType<A>);
  auto* losses = static_cast<A*>(loss.mutable_data_ptr());
  if (none) {
    std::fill_n(losses, loss.numel(), A(0));
  }
  Tensor stats = empty({sizes.groups, rows, kStats}, kType<A>);
  auto* numbers = static_cast<A*>(stats.mutable_data_ptr());
  for (int64_t row = 0; row < batch.rows(); ++row) {  // of no anchor
    numbers[row * kStats] = std::numeric_limits<A>::infinity();
    std::fill_n(numbers + row * kStats + 1, kStats - 1, A(0));
  }
  const A* weights = data_of<A>(class_weights);
  double total = 0;
  int64_t counted = 0;
  for (int64_t group = 0; group < sizes.groups; ++group) {
    const Range anchors = layout.segments()[group * kSegments];
    for (int64_t row = anchors.begin; row < anchors.end; ++row) {
      const int64_t positives = layout.positives(row), source = Layout::source(batch.order()[row]);
      counted += reduction == Reduction::batchmean || positives > 0;
      if (positives == 0) {
        continue;
      }
      double a = 1.0 / static_cast<double>(positives);
      if (weights) {
        a *= weights[label_of[group * rows + source]];
      }
      const RowSums& sum = sums[row];
      const double l = double{row_max[row]} + log_e[row];
      const double value = options.needs_l() ? -sum.v : l * sum.h - sum.v;
      const A saved[] = {row_max[row], static_cast<A>(sum.h), static_cast<A>(a), log_e[row]};
      std::copy_n(saved, kStats, numbers + (group * rows + source) * kStats);
      total += a * value;
      if (none) {
        losses[group * sizes.embeddings + source] = static_cast<A>(a * value);
      }
    }
  }
  const bool divides = reduction == Reduction::mean || reduction == Reduction::batchmean;
  const double by = divides ? static_cast<double>(std::max<int64_t>(counted, 1)) : 1;
  Tensor divisor = empty({}, kType<A>);
  *static_cast<A*>(divisor.mutable_data_ptr()) = static_cast<A>(by);
  if (!none) {
    *losses = static_cast<A>(total / by);
  }
  return {loss, divisor, stats};
}

}  // namespace
}  // namespace merc::focal_contrastive::cpu

// The backward pass: the matrix M tile by tile, its products with the unit rows, and their way back to the arguments.
//
//   dZ = M Z / tau,  M = W + W' (matrix.h),  dX = (dZ - (z.dZ) z) / |x|,  d tau = -sum W_ij s_ij / tau
// a_i here holds the gradient that reaches the row over the divisor, u_i = a_i G_i, over E_i where that is bounded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "forward.h"

namespace merc::focal_contrastive::cpu {
namespace {

// In the place of a row's maximum: e^(s - m) is 0, and no infinity meets a weight of 0.
template <class A>
constexpr A kNoAnchor = std::numeric_limits<A>::max() / 1024;

// What the backward pass makes of the saved numbers.
template <class A>
struct Saved {
  std::vector<A> a, row_max, log_e, u;

  explicit Saved(int64_t rows) : a(rows + kLanes), row_max(rows + kLanes), log_e(rows + kLanes), u(rows + kLanes) {}
  Weights<A> at(int64_t row) const {
    return {a.data() + row, {row_max.data() + row, log_e.data() + row}, u.data() + row};
  }
};

template <class A>
Saved<A> weigh(
    const Batch<A>& batch, const Tensor& grad, const Tensor& divisor, const Tensor& stats, TileOptions<A>& options) {
  const Sizes& sizes = batch.sizes();
  const auto* grads = static_cast<const A*>(grad.const_data_ptr());
  const double by = *static_cast<const A*>(divisor.const_data_ptr());
  const auto* numbers = static_cast<const A*>(stats.const_data_ptr());
  Saved<A> saved(batch.rows());
  bool finite = true;
  for (int64_t row = 0; row < batch.rows(); ++row) {
    saved.row_max[row] = kNoAnchor<A>;
    if (batch.order()[row] < 0) {
      continue;
    }
    const int64_t group = row / sizes.rows(), source = Layout::source(batch.order()[row]);
    const A* number = numbers + (group * sizes.rows() + source) * kStats;
    if (number[0] == std::numeric_limits<A>::infinity()) {
      continue;
    }
    saved.row_max[row] = number[0];
    saved.log_e[row] = number[3];
    const int64_t at = grad.dim() == 0 ? 0 : group * sizes.embeddings + source;
    const double weight = number[2] * (grads[at] / by);
    saved.a[row] = static_cast<A>(weight);
    saved.u[row] = static_cast<A>(weight * number[1] * (options.bounded ? std::exp(-double{number[3]}) : 1));
    finite = finite && std::isfinite(saved.u[row]);
  }
  if (options.bounded && !finite) {  // a large weight of a row that is far from all others
    options.bounded = false;
    return weigh(batch, grad, divisor, stats, options);
  }
  return saved;
}

// M Z, (groups x rows, D), of the segments that are wanted; and sum W s, where that is. The first tile of a block sets
// its rows, the others add.
template <class A>
Tensor multiply_tiles(
    Batch<A>& batch, const TileOptions<A>& options, const Saved<A>& saved, const bool (&wanted)[kSegments],
    double* of_temperature) {
  const Kernels<A>& kernel = batch.kernel();
  const Layout& layout = batch.layout();
  const int64_t width = batch.arguments().width;
  const bool any = wanted[0] || wanted[1] || wanted[2];
  Tensor gradient = empty({any ? batch.rows() : 0, width}, kType<A>);
  auto* of_rows = static_cast<A*>(gradient.mutable_data_ptr());
  for (const Block& block : layout.blocks()) {
    if (wanted[block.segment] && block.tiles == 0) {
      std::fill_n(of_rows + block.rows.begin * width, block.rows.size() * width, A(0));
    }
  }
  const Tensor scratch = batch.scratch(3), scratch_of_product = batch.scratch(batch.scratch_rows());
  std::vector<double> sums_of_tiles(of_temperature ? layout.tiles().size() : 0);
  const auto accumulate = [&](const Tile& tile, bool transposed, int64_t worker) {
    const Block& block = layout.blocks()[transposed ? tile.columns : tile.rows];
    if (wanted[block.segment]) {
      const int position = transposed ? tile.column_position : tile.row_position;
      batch.multiply(
          tile, transposed, batch.tile(tile, worker), batch.scratch_of(scratch_of_product, worker),
          of_rows + block.rows.begin * width, position > 0);
    }
  };
  run_tiles(
      layout, batch.workers(),
      [&](const Tile& tile, int64_t worker) {
        A* data = batch.tile(tile, worker);
        const View view = batch.cosines(tile, data);
        const double sum = kernel.matrix_tile(
            view, options, data, saved.at(view.rows.begin), saved.at(view.columns.begin), of_temperature != nullptr,
            batch.scratch_of(scratch, worker));
        if (of_temperature) {
          sums_of_tiles[&tile - layout.tiles().data()] = sum;
        }
      },
      [&](const Tile& tile, int64_t worker) {
        accumulate(tile, false, worker);
        if (!tile.diagonal()) {
          accumulate(tile, true, worker);
        }
      });
  for (const double sum : sums_of_tiles) {
    *of_temperature += sum;
  }
  return gradient;
}

// Of the rows' gradient, what falls to an argument: (dZ - (z.dZ) z) / |x|, summed over the groups that share it.
template <class A>
Tensor unpack(
    const Batch<A>& batch, const Source& source, const std::vector<int64_t>& place, const A* of_rows, ScalarType type) {
  const Kernels<A>& kernel = batch.kernel();
  const int64_t rows = batch.sizes().rows(), width = batch.arguments().width;
  Tensor tensor = empty(size_of(*source.tensor), type);
  auto* data = static_cast<char*>(tensor.mutable_data_ptr());
  const int64_t bytes = width * static_cast<int64_t>(tensor.element_size());
  const int64_t copies = source.shared() ? 1 : batch.sizes().groups;
  const int64_t groups = source.shared() ? batch.sizes().groups : 1;
  torch::stable::parallel_for(0, copies * source.rows, grain(width), [&](int64_t begin, int64_t end) {
    std::vector<A> sum(width);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(sum.begin(), sum.end(), A(0));
      for (int64_t group = i / source.rows; group < i / source.rows + groups; ++group) {
        const int64_t row = place[group * rows + source.first + i % source.rows];
        if (row >= 0) {
          kernel.add_row_gradient(
              of_rows + row * width, batch.unit_rows() + row * width, batch.lengths()[row], width,
              batch.options().normalize, 1 / static_cast<A>(batch.options().temperature), sum.data());
        }
      }
      kernel.store_row(sum.data(), width, type, data + i * bytes);
    }
  });
  return tensor;
}

// Of embeddings, prototypes, refs and temperature, as far as wanted; `exact`: as they were computed, not in the
// arguments' types.
template <class A>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Batch<A>& batch, const Tensor& grad, const Tensor& divisor, const Tensor& stats, const Wanted& wanted, bool exact) {
  const Arguments& arguments = batch.arguments();
  const Sizes& sizes = batch.sizes();
  const int64_t rows = sizes.rows();
  TileOptions<A> options(batch.options());
  const Saved<A> saved = weigh(batch, grad, divisor, stats, options);
  const bool of_segments[] = {
      wanted.sources[0] || (sizes.prototype_anchors && wanted.sources[1]), wanted.sources[1], wanted.sources[2]};
  double sum = 0;
  const Tensor gradient = multiply_tiles(batch, options, saved, of_segments, wanted.temperature ? &sum : nullptr);

  std::vector<int64_t> place(batch.rows(), -1);  // of each row of the arguments
  for (int64_t row = 0; row < batch.rows(); ++row) {
    if (batch.order()[row] >= 0) {
      place[row / rows * rows + Layout::source(batch.order()[row])] = row;
    }
  }
  const auto of = [&](int number) {
    const Source& source = arguments.sources[number];
    const ScalarType type = source.tensor && !exact ? source.tensor->scalar_type() : kType<A>;
    if (!wanted.sources[number] || !source.tensor) {
      return empty({0}, type);
    }
    return unpack(batch, source, place, static_cast<const A*>(gradient.const_data_ptr()), type);
  };
  Tensor of_temperature = empty(wanted.temperature ? std::vector<int64_t>{} : std::vector<int64_t>{0}, kType<A>);
  if (wanted.temperature) {
    *static_cast<A*>(of_temperature.mutable_data_ptr()) = static_cast<A>(-sum / batch.options().temperature);
  }
  return {of(0), of(1), of(2), of_temperature};
}

}  // namespace
}  // namespace merc::focal_contrastive::cpu

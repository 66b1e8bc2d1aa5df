// The tiles of a call, handed to all threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "allocate.h"
#include "focal_contrastive_problem.h"
#include "matrix_product.h"

namespace merc::cpu {

// Hands the tiles to all threads. `compute(tile, worker)` runs at any time, `add(tile, worker)` when the tiles that
// stand before it at either block have added.
template <class Compute, class Add>
void run_tiles(const Layout& layout, int64_t workers, const Compute& compute, const Add& add) {
  const std::vector<Tile>& tiles = layout.tiles();
  const auto added = std::make_unique<std::atomic<int>[]>(layout.blocks().size());
  std::atomic<size_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (size_t i = next++; i < tiles.size(); i = next++) {
        const Tile& tile = tiles[i];
        compute(tile, worker);
        while (added[tile.rows].load(std::memory_order_acquire) != tile.row_position ||
               added[tile.columns].load(std::memory_order_acquire) != tile.column_position) {
          std::this_thread::yield();
        }
        add(tile, worker);
        added[tile.rows].fetch_add(1, std::memory_order_release);
        if (!tile.diagonal()) {
          added[tile.columns].fetch_add(1, std::memory_order_release);
        }
      }
    }
  });
}

template <class F>
void each_row(int64_t rows, int64_t work, const F& f) {
  torch::stable::parallel_for(0, rows, 32768 / std::max<int64_t>(work, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      f(row);
    }
  });
}

// The unit rows of a call and what is done with their tiles.
template <class A>
class Rows {
 public:
  Rows(const Arguments& arguments, const Layout& layout, const A* z)
      : layout_(layout),
        width_(arguments.width),
        stride_(std::max<int64_t>((layout.largest_block() + 15) / 16 * 16, 16)),
        workers_(torch::stable::get_num_threads()) {
    for (const Block& block : layout.blocks()) {
      const A* data = z + block.rows.begin * width_;
      matrices_.push_back(std::make_unique<Matrix<A>>(data, block.rows.size(), width_, width_));
      transposed_.push_back(std::make_unique<Matrix<A>>(data, width_, block.rows.size(), 1, width_));
    }
  }

  int64_t workers() const { return workers_; }
  int64_t stride() const { return stride_; }
  const Matrix<A>& of(int block) const { return *matrices_[block]; }

  // Memory for one tile and `rows` of its rows, for each worker.
  Tensor scratch(int64_t rows) const { return empty({workers_, stride_ + rows, stride_}, type()); }
  A* scratch_of(const Tensor& scratch, int64_t worker) const {
    return static_cast<A*>(scratch.mutable_data_ptr()) + worker * scratch.size(1) * stride_;
  }

  View cosines(const Tile& tile, A* to) const {
    const Block &rows = layout_.blocks()[tile.rows], &columns = layout_.blocks()[tile.columns];
    Matrix<A>(to, rows.rows.size(), columns.rows.size(), stride_)
        .set_product(*matrices_[tile.rows], *transposed_[tile.columns]);
    return {&layout_, rows.rows, columns.rows, columns.segment, tile.diagonal(), tile.mutual, stride_};
  }

  static constexpr ScalarType type() { return sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float; }

 private:
  const Layout& layout_;
  int64_t width_, stride_, workers_;
  std::vector<std::unique_ptr<Matrix<A>>> matrices_, transposed_;
};

}  // namespace merc::cpu

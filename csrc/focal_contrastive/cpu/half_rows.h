// Rows of bfloat16 as the factors of half_product.h, block by block.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../cpu/allocate.h"
#include "kernels.h"
#include "layout.h"
#include "queue.h"

namespace merc::focal_contrastive::cpu {
namespace {

class HalfRows {
 public:
  // `source(row)`: where the numbers of a row stand; `lengths`: of the rows, where they are normalised.
  template <class SourceOf>
  HalfRows(
      const HalfKernels& kernel, const Layout& layout, int64_t width, bool normalize, const float* lengths,
      const SourceOf& source)
      : kernel_(kernel), layout_(layout), depth_(whole(width, kTileDepth)) {
    for (const Block& block : layout.blocks()) {
      begin_.push_back(rows_);
      rows_ += whole(block.rows.size(), kTileDepth);
    }
    const auto halves = [&](int64_t count) { return merc::cpu::empty({count}, ScalarType::BFloat16); };
    left_ = halves(rows_ * depth_);
    transposed_ = halves(rows_ * depth_);
    right_ = halves(rows_ * depth_);
    factors_ = merc::cpu::empty({rows_}, ScalarType::Float);
    const int64_t count = rows_ / kTileDepth;
    torch::stable::parallel_for(0, count, grain(kTileDepth * depth_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i * kTileDepth;
        const int64_t number = std::upper_bound(begin_.begin(), begin_.end(), at) - begin_.begin() - 1;
        pack(number, at - begin_[number], width, normalize, lengths, source);
      }
    });
  }

  // Cosines of the rows of two blocks.
  void cosines(int rows, int columns, int64_t stride, float* to) const {
    const int64_t height = whole(block(rows).rows.size()), n = whole(block(columns).rows.size());
    const HalfLeft left{data(left_) + begin_[rows] * depth_, depth_};
    const HalfRight right{data(transposed_) + begin_[columns] * depth_, kTileRows * depth_};
    kernel_.multiply(height, depth_, n, left, right, {to, stride, false});
    for (int64_t i = 0; i < height; ++i) {
      kernel_.scale_row(to + i * stride, static_cast<int32_t>(n), factors(rows)[i], factors(columns));
    }
  }

  // M Z for the rows of a tile M of two blocks, or M' Z for its columns, of `width` features. `scratch` holds 16 rows of
  // a tile, and behind them its two parts.
  void multiply(
      const Tile& tile, bool transposed, const float* m, int64_t stride, int64_t width, float* scratch,
      Product<float> to) const {
    const int other = transposed ? tile.rows : tile.columns;
    const int64_t height = block(tile.rows).rows.size(), n = block(tile.columns).rows.size();
    const int64_t depth = padded(block(other));
    const HalfLeft left = kernel_.split(
        m, stride, height, n, factors(other), depth, transposed, scratch,
        reinterpret_cast<Half*>(scratch + kTileRows * stride));
    const HalfRight right{data(right_) + begin_[other] * depth_, kTileRows * depth};
    kernel_.multiply(transposed ? n : height, depth, width, left, right, to);
  }

  // Rows of a tile, `stride` numbers long, that `multiply` wants as scratch.
  static int64_t scratch_rows(int64_t stride) { return kTileRows + stride + kTileDepth; }

 private:
  const Block& block(int number) const { return layout_.blocks()[number]; }
  static int64_t padded(const Block& block) { return whole(block.rows.size(), kTileDepth); }
  // What makes unit rows of a block's; 0 behind the last.
  const float* factors(int block) const { return static_cast<const float*>(factors_.const_data_ptr()) + begin_[block]; }
  static Half* data(const Tensor& tensor) { return static_cast<Half*>(tensor.mutable_data_ptr()); }

  // kTileDepth rows of a block, from `first` on.
  template <class SourceOf>
  void pack(
      int64_t number, int64_t first, int64_t width, bool normalize, const float* lengths, const SourceOf& source) {
    const Block& block = layout_.blocks()[number];
    Half* rows = data(left_) + (begin_[number] + first) * depth_;
    auto* factors = static_cast<float*>(factors_.mutable_data_ptr()) + begin_[number] + first;
    for (int64_t i = 0; i < kTileDepth; ++i) {
      const int64_t row = block.rows.begin + first + i;
      int64_t used = 0;
      factors[i] = 0;
      if (row < block.rows.end) {
        const float scale = kernel_.scaled_row(source(row), width, normalize, rows + i * depth_);
        factors[i] = !normalize ? 1 : lengths[row] == 0 ? 0 : 1 / (lengths[row] * scale);
        used = width;
      }
      std::fill(rows + i * depth_ + used, rows + (i + 1) * depth_, Half{0});
    }
    for (int64_t i = 0; i < kTileDepth; i += kTileRows) {
      kernel_.transpose(rows + i * depth_, depth_, data(transposed_) + (begin_[number] + first + i) * depth_);
    }
    const int64_t panel = kTileRows * padded(block);
    Half* lines = data(right_) + begin_[number] * depth_ + first * kTileRows;
    for (int64_t i = 0; i < kTileDepth; i += 2) {
      kernel_.interleave(rows + i * depth_, rows + (i + 1) * depth_, depth_, panel, lines + i * kTileRows);
    }
  }

  const HalfKernels& kernel_;
  const Layout& layout_;
  int64_t depth_, rows_ = 0;
  std::vector<int64_t> begin_;  // of each block
  Tensor left_, transposed_, right_, factors_;
};

}  // namespace
}  // namespace merc::focal_contrastive::cpu

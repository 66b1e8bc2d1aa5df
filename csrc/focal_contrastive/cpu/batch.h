// The rows of a call, laid out and normalised, as both passes see them; and the memory of their tiles.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../cpu/allocate.h"
#include "../arguments.h"
#include "half_rows.h"
#include "kernels.h"
#include "layout.h"
#include "queue.h"
#include "tile.h"

namespace merc::focal_contrastive::cpu {
namespace {

using merc::cpu::empty;

inline Sizes sizes_of(const Arguments& arguments, bool all_anchors = false) {
  return {
      .groups = arguments.groups,
      .embeddings = arguments.sources[0].rows,
      .prototypes = arguments.sources[1].rows,
      .refs = arguments.sources[2].rows,
      .prototype_anchors = arguments.options.prototype_anchors,
      .ref_only = arguments.options.ref_only,
      .all_anchors = all_anchors};
}

// With the temperature's own value where it is a tensor.
inline Options<double> options_of(const Arguments& arguments) {
  Options<double> options = arguments.options;
  if (arguments.temperature_tensor) {
    const void* value = arguments.temperature_tensor->const_data_ptr();
    options.temperature = arguments.accumulate == ScalarType::Double
                              ? *static_cast<const double*>(value)
                              : static_cast<double>(*static_cast<const float*>(value));
  }
  return options;
}

// The labels of all rows, group after group, ignore_index where they are none of the classes (if those are known).
inline std::vector<int64_t> all_labels(const ForwardArguments& call) {
  const Sizes sizes = sizes_of(call.arguments);
  const int64_t classes = call.classes();
  std::vector<int64_t> all;
  all.reserve(sizes.groups * sizes.rows());
  const auto append = [&](const Tensor& from, int64_t group, int64_t rows) {
    const auto* data = static_cast<const int64_t*>(from.const_data_ptr()) + (from.dim() == 2 ? group * rows : 0);
    for (int64_t i = 0; i < rows; ++i) {
      const bool known = classes < 0 || (data[i] >= 0 && data[i] < classes);
      all.push_back(known ? data[i] : call.arguments.options.ignore_index);
    }
  };
  for (int64_t group = 0; group < sizes.groups; ++group) {
    append(call.labels, group, sizes.embeddings);
    for (int64_t c = 0; c < sizes.prototypes; ++c) {
      all.push_back(c);
    }
    if (call.ref_labels) {
      append(*call.ref_labels, group, sizes.refs);
    }
  }
  return all;
}

template <class A>
constexpr ScalarType kType = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;

template <class A>
class Batch {
 public:
  // From the arguments. `keep`: the cosines of all tiles stay in memory from one pass to the next.
  Batch(const Arguments& arguments, const std::vector<int64_t>& labels, bool keep)
      : Batch(
            arguments, empty({arguments.groups, arguments.rows(), arguments.width}, kType<A>),
            empty({arguments.groups, arguments.rows()}, kType<A>),
            sorted(sizes_of(arguments), labels, arguments.options.ignore_index), keep, /*all_anchors=*/false) {
    auto* norms = static_cast<A*>(norms_.mutable_data_ptr());
    std::fill_n(norms, rows(), A(0));  // dropped rows have no length
    pack(static_cast<A*>(z_.mutable_data_ptr()), norms);
  }

  // As a forward pass left them.
  Batch(const Arguments& arguments, Tensor z, Tensor norms, Tensor index, bool all_anchors)
      : Batch(arguments, std::move(z), std::move(norms), std::move(index), /*keep=*/false, all_anchors) {
    if (halves_are_better(arguments) || kernel_.transpose) {
      pack(nullptr, nullptr);
    }
  }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  const Arguments& arguments() const { return arguments_; }
  const Options<double>& options() const { return options_; }
  const Sizes& sizes() const { return sizes_; }
  const Layout& layout() const { return layout_; }
  int64_t rows() const { return sizes_.groups * sizes_.rows(); }
  int64_t workers() const { return workers_; }
  const Kernels<A>& kernel() const { return kernel_; }
  int64_t stride() const { return stride_; }
  const Tensor& z() const { return z_; }
  const Tensor& norms() const { return norms_; }
  const Tensor& index() const { return index_; }
  const A* unit_rows() const { return unit_rows_; }
  const A* lengths() const { return lengths_; }
  const int64_t* order() const { return order_; }

  // Unit rows of a block as factors of a product: by rows and features, features and rows, rows and features.
  Left<A> left(const Block& block) const { return {rows_of(block), arguments_.width, 1}; }
  Right<A> transposed(const Block& block) const {
    if (!kernel_.transpose) {
      return {rows_of(block), arguments_.width, 1};
    }
    const A* panel = panels() + block.padded_begin * arguments_.width;
    return {panel, kernel_.vector * arguments_.width, kernel_.vector};
  }
  Right<A> right(const Block& block) const { return {rows_of(block), kernel_.vector, arguments_.width}; }

  // Memory for `rows` rows of a tile, for each worker.
  Tensor scratch(int64_t rows) const { return empty({workers_, rows, stride_}, kType<A>); }
  A* scratch_of(const Tensor& scratch, int64_t worker) const {
    return static_cast<A*>(scratch.mutable_data_ptr()) + worker * scratch.size(1) * stride_;
  }

  A* tile(const Tile& tile, int64_t worker) const {
    const int64_t number = keep_ ? &tile - layout_.tiles().data() : worker;
    return static_cast<A*>(tiles_.mutable_data_ptr()) + number * stride_ * stride_;
  }

  // Has the cosines of a tile there, unless they were kept.
  View cosines(const Tile& tile, A* to) const {
    const Block &rows = layout_.blocks()[tile.rows], &columns = layout_.blocks()[tile.columns];
    const View view{&layout_, rows.rows, columns.rows, columns.segment, tile.diagonal(), tile.mutual, stride_};
    if (kept_) {
      return view;
    }
    const int64_t height = rows.rows.size(), n = columns.rows.size();
    if (halves_) {
      halves_->cosines(tile.rows, tile.columns, stride_, floats(to));
    } else {
      kernel_.multiply(
          height, arguments_.width, whole(n, kernel_.vector), left(rows), transposed(columns), {to, stride_, false});
    }
    for (int64_t i = 0; i < height; ++i) {
      A* row = to + i * stride_;
      std::fill(row + n, row + view.padded(), -std::numeric_limits<A>::infinity());
      if (view.diagonal) {
        row[i] = -std::numeric_limits<A>::infinity();
      }
    }
    return view;
  }

  // M Z for the rows of a tile M, or M' Z for its columns; `add`: to what stands there.
  void multiply(const Tile& tile, bool transposed, const A* m, A* scratch, A* to, bool add) const {
    const Block& rows = layout_.blocks()[tile.rows];
    const Block& columns = layout_.blocks()[tile.columns];
    const int64_t width = arguments_.width;
    if (halves_) {
      halves_->multiply(tile, transposed, floats(m), stride_, width, floats(scratch), {floats(to), width, add});
    } else if (transposed) {
      kernel_.multiply(columns.rows.size(), rows.rows.size(), width, {m, 1, stride_}, right(rows), {to, width, add});
    } else {
      kernel_.multiply(rows.rows.size(), columns.rows.size(), width, {m, stride_, 1}, right(columns), {to, width, add});
    }
  }
  int64_t scratch_rows() const { return halves_ ? HalfRows::scratch_rows(stride_) : 0; }  // of `multiply`

  // All tiles have their cosines.
  void passed() { kept_ = keep_; }

 private:
  static Tensor sorted(const Sizes& sizes, const std::vector<int64_t>& labels, int64_t dropped) {
    Tensor index = empty({sizes.groups, sizes.rows()}, ScalarType::Long);
    auto* order = static_cast<int64_t*>(index.mutable_data_ptr());
    for (int64_t group = 0; group < sizes.groups; ++group) {
      const int64_t first = group * sizes.rows();
      Layout::sort_group(sizes, labels.data() + first, dropped, order + first);
    }
    return index;
  }

  Batch(const Arguments& arguments, Tensor z, Tensor norms, Tensor index, bool keep, bool all_anchors)
      : arguments_(arguments),
        options_(options_of(arguments)),
        sizes_(sizes_of(arguments, all_anchors)),
        kernel_(kernels<A>()),
        z_(std::move(z)),
        norms_(std::move(norms)),
        index_(std::move(index)),
        unit_rows_(static_cast<const A*>(z_.const_data_ptr())),
        lengths_(static_cast<const A*>(norms_.const_data_ptr())),
        order_(static_cast<const int64_t*>(index_.const_data_ptr())),
        layout_(sizes_, order_),
        keep_(keep),
        workers_(torch::stable::get_num_threads()),
        stride_(std::max(whole(layout_.largest_block()), kLanes)),
        tiles_(empty({keep ? static_cast<int64_t>(layout_.tiles().size()) : workers_, stride_, stride_}, kType<A>)),
        panels_(empty(
            {kernel_.transpose && !halves_are_better(arguments) ? layout_.padded_rows() : 0, arguments.width},
            kType<A>)) {}

  // Whether all rows are bfloat16 and there is a unit that multiplies them.
  static bool halves_are_better(const Arguments& arguments) {
    return half_kernels() && arguments.same_type && arguments.embeddings().scalar_type() == ScalarType::BFloat16;
  }
  // Of float32 sums; halves have no others.
  template <class T>
  static auto* floats(T* numbers) {
    return reinterpret_cast<std::conditional_t<std::is_const_v<T>, const float, float>*>(numbers);
  }

  const A* rows_of(const Block& block) const { return unit_rows() + block.rows.begin * arguments_.width; }
  const A* panels() const { return static_cast<const A*>(panels_.const_data_ptr()); }

  // A vector of rows at a time: unit rows and their lengths where they are asked for, and those rows transposed.
  void pack(A* z, A* norms) {
    struct Panel {
      Range rows;
      int64_t padded_begin;
    };
    const int64_t width = arguments_.width, vector = kernel_.vector;
    std::vector<Panel> panels;
    for (const Block& block : layout_.blocks()) {
      for (int64_t row = 0; row < block.rows.size(); row += vector) {
        const int64_t begin = block.rows.begin + row;
        panels.push_back({{begin, std::min(begin + vector, block.rows.end)}, block.padded_begin + row});
      }
    }
    auto* transposed = static_cast<A*>(panels_.mutable_data_ptr());
    const auto count = static_cast<int64_t>(panels.size());
    torch::stable::parallel_for(0, count, grain(width * vector), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto& [rows, padded_begin] = panels[i];
        if (z) {
          for (int64_t row = rows.begin; row < rows.end; ++row) {
            norms[row] = unit_row(row, z + row * width);
          }
        }
        if (panels_.size(0) > 0) {
          kernel_.transpose(unit_rows_ + rows.begin * width, rows.size(), width, transposed + padded_begin * width);
        }
      }
    });
    if (halves_are_better(arguments_)) {
      halves_.emplace(*half_kernels(), layout_, width, options_.normalize, floats(lengths_), [this](int64_t row) {
        return reinterpret_cast<const Half*>(source_of(row).first);
      });
    }
  }

  // Where the numbers of a row stand among the arguments, and their type.
  std::pair<const char*, ScalarType> source_of(int64_t row) const {
    const int64_t from = Layout::source(order()[row]), group = row / sizes_.rows();
    int i = 0;
    while (from >= arguments_.sources[i].first + arguments_.sources[i].rows) {
      ++i;
    }
    const Source& source = arguments_.sources[i];
    const int64_t at = group * source.group_stride + (from - source.first) * source.row_stride;
    return {source.data + at * source.bytes, source.type};
  }

  // Writes a row of the arguments, normalised; its length.
  A unit_row(int64_t row, A* to) const {
    const auto [from, type] = source_of(row);
    return kernel_.unit_row(from, type, arguments_.width, options_.normalize, to);
  }

  const Arguments& arguments_;
  const Options<double> options_;
  const Sizes sizes_;
  const Kernels<A> kernel_;
  Tensor z_, norms_, index_;
  const A *unit_rows_, *lengths_;
  const int64_t* order_;
  Layout layout_;
  bool keep_, kept_ = false;
  int64_t workers_, stride_;
  Tensor tiles_, panels_;
  std::optional<HalfRows> halves_;
};

}  // namespace
}  // namespace merc::focal_contrastive::cpu

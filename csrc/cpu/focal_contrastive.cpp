// Focal contrastive loss on the CPU: checks, allocation, threads. The arithmetic on a tile is in
// focal_contrastive_tiles.h, the places of the rows in focal_contrastive_layout.h, the focal formula in ../focal.h.
//
//   loss_i = a_i sum over positives of -h (s_ij - L_i),  s_ij = z_i.z_j / tau,  L_i = logsumexp_j s_ij,  a_i = w / |P(i)|
//   dZ = M Z / tau,  M = W + W',  W_ij = a_i ([j positive] dg/ds + p_ij G_i),  G_i = sum over positives of dg/dL
//   d tau = -sum W_ij s_ij / tau (without h' of the similarity form),  dX = (dZ - (z.dZ) z) / |x|
//
// S is symmetric, and so is M: a pair of blocks of rows is one tile, whose cosines serve both. A tile adds to its two
// blocks when the tiles before it have, in an order that does not depend on the threads: nor do the bits.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "../focal.h"
#include "allocate.h"
#include "focal_contrastive_layout.h"
#include "focal_contrastive_problem.h"
#include "focal_contrastive_queue.h"
#include "isa.h"
#include "matrix_product.h"

namespace merc::cpu {
namespace {

enum class Reduction : int64_t { none = 0, sum = 1, mean = 2, batchmean = 3 };

constexpr int64_t kNumbers = 4;  // saved of a row: m, G, a, log E; L' = m + log E

}  // namespace

namespace plain {
namespace {
#include "vector_math.h"
#include "focal_contrastive_tiles.h"
}  // namespace
}  // namespace plain

#ifdef MERC_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prefer-vector-width=256")
namespace avx2 {
namespace {
#include "vector_math.h"
#include "focal_contrastive_tiles.h"
}  // namespace
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512")
namespace avx512 {
namespace {
#include "vector_math.h"
#include "focal_contrastive_tiles.h"
}  // namespace
}  // namespace avx512
#pragma GCC pop_options
#endif

namespace {

// The functions of one instruction set.
template <class A>
struct Kernels {
  decltype(&plain::sum_tile<A>) sum_tile;
  decltype(&plain::matrix_tile<A>) matrix_tile;
  A (*unit_row)(const void*, ScalarType, int64_t, bool, A*);
  decltype(&plain::add_row_gradient<A>) add_row_gradient;
  void (*store_row)(const A*, int64_t, ScalarType, void*);
};

#define MERC_KERNELS(isa) \
  Kernels<A> { isa::sum_tile<A>, isa::matrix_tile<A>, isa::unit_row<A>, isa::add_row_gradient<A>, isa::store_row<A> }

template <class A>
Kernels<A> kernels() {
#ifdef MERC_X86_KERNELS
  if constexpr (std::is_same_v<A, float>) {  // exp and log of a double are no vector code
    if (isa() == Isa::avx512) {
      return MERC_KERNELS(avx512);
    }
    if (isa() == Isa::avx2) {
      return MERC_KERNELS(avx2);
    }
  }
#endif
  return MERC_KERNELS(plain);
}

// What a row adds up over its tiles.
struct Row {
  double e = 0, v = 0, h = 0;
  double most = -std::numeric_limits<double>::infinity();  // E counts from here on
};

template <class A>
void add_sums(const Range& range, const Sums<A>& sums, bool bounded, bool second, Row* rows) {
  for (int64_t i = 0; i < range.size(); ++i) {
    Row& row = rows[range.begin + i];
    if (!second && bounded) {
      row.e += sums.e[i];
    } else if (!second) {
      const double most = sums.most[i];
      if (most > row.most) {
        row.e = row.e * std::exp(row.most - most) + sums.e[i];
        row.most = most;
      } else {
        row.e += sums.e[i] * std::exp(most - row.most);
      }
    }
    row.v += sums.v[i];
    row.h += sums.h[i];
  }
}

// The sums of all rows; `second`: those that need L'.
template <class A>
void sum_tiles(
    const Rows<A>& z, const Layout& layout, const Options<A>& o, const Logarithms<A>& l, std::vector<Row>& rows) {
  const Kernels<A> kernel = kernels<A>();
  const bool second = l.log_e != nullptr;
  const auto from = [&](int64_t row) { return second ? Logarithms<A>{l.most + row, l.log_e + row} : l; };
  const Tensor scratch = z.scratch(8);
  const auto sums = [&](int64_t worker, int part) {
    A* rows_of_sums = z.scratch_of(scratch, worker) + (z.stride() + 4 * part) * z.stride();
    return Sums<A>{
        rows_of_sums, rows_of_sums + z.stride(), rows_of_sums + 2 * z.stride(), rows_of_sums + 3 * z.stride()};
  };
  const auto skip = [&](const Tile& tile) { return second && !layout.has_positives(tile); };
  run_tiles(
      layout, z.workers(),
      [&](const Tile& tile, int64_t worker) {
        if (skip(tile)) {
          return;
        }
        A* cosines = z.scratch_of(scratch, worker);
        const View view = z.cosines(tile, cosines);
        if (!second && o.needs_l()) {
          std::fill_n(sums(worker, 0).v, 2 * z.stride(), A(0));
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
}

// The labels of all rows, group after group, `dropped` where they are none of `classes` (if that is known).
std::vector<int64_t> all_labels(
    const Sizes& sizes, const Tensor& labels, const std::optional<Tensor>& ref_labels, int64_t classes,
    int64_t dropped) {
  std::vector<int64_t> all;
  all.reserve(sizes.groups * sizes.rows());
  const auto append = [&](const Tensor& from, int64_t group, int64_t rows) {
    const auto* data = static_cast<const int64_t*>(from.const_data_ptr()) + (from.dim() == 2 ? group * rows : 0);
    for (int64_t i = 0; i < rows; ++i) {
      all.push_back(classes < 0 || (data[i] >= 0 && data[i] < classes) ? data[i] : dropped);
    }
  };
  for (int64_t group = 0; group < sizes.groups; ++group) {
    append(labels, group, sizes.embeddings);
    for (int64_t c = 0; c < sizes.prototypes; ++c) {
      all.push_back(c);
    }
    if (ref_labels) {
      append(*ref_labels, group, sizes.refs);
    }
  }
  return all;
}

std::optional<Tensor> checked_labels(
    const char* name, const std::optional<Tensor>& labels, int64_t groups, int64_t rows) {
  if (!labels) {
    STD_TORCH_CHECK(rows == 0, name, ": expected a tensor");
    return std::nullopt;
  }
  check_dtype(name, *labels, ScalarType::Long);
  check_shape(name, *labels, groups, &rows, 1);
  return torch::stable::contiguous(*labels);
}

template <class A>
void pack(const Arguments& arguments, const Layout& layout, const int64_t* order, A* z, A* norms) {
  const Kernels<A> kernel = kernels<A>();
  const int64_t rows = arguments.sizes.rows();
  each_row(arguments.sizes.groups * rows, arguments.width, [&](int64_t row) {
    if (order[row] < 0) {
      norms[row] = 0;
      return;
    }
    const int64_t from = Layout::source(order[row]);
    const Source* source = arguments.sources;
    while (from >= source->first + source->rows || !source->tensor) {
      ++source;
    }
    const Tensor& tensor = *source->tensor;
    const int64_t at = (source->shared() ? 0 : row / rows * source->rows) + from - source->first;
    const char* data = static_cast<const char*>(tensor.const_data_ptr()) +
                       at * arguments.width * static_cast<int64_t>(tensor.element_size());
    norms[row] = kernel.unit_row(data, tensor.scalar_type(), arguments.width, arguments.normalize,
                                 z + row * arguments.width);
  });
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class A>
Forward forward(
    const Arguments& arguments, const std::optional<Tensor>& labels, const std::optional<Tensor>& ref_labels,
    const std::optional<Tensor>& class_weights, int64_t ignore_index, Reduction reduction) {
  const Sizes& sizes = arguments.sizes;
  const ScalarType type = arguments.accumulate;
  const int64_t rows = sizes.rows();
  Tensor z = empty({sizes.groups, rows, arguments.width}, type);
  Tensor norms = empty({sizes.groups, rows}, type);
  Tensor stats = empty({sizes.groups, rows, kNumbers}, type);
  Tensor index = empty({sizes.groups, rows}, ScalarType::Long);
  auto* order = static_cast<int64_t*>(index.mutable_data_ptr());
  const int64_t classes = arguments.sources[1].tensor ? sizes.prototypes : class_weights ? class_weights->size(0) : -1;
  const std::vector<int64_t> label_of = all_labels(sizes, *labels, ref_labels, classes, ignore_index);
  for (int64_t group = 0; group < sizes.groups; ++group) {
    Layout::sort_group(sizes, label_of.data() + group * rows, ignore_index, order + group * rows);
  }
  const Layout layout(sizes, order);
  pack(arguments, layout, order, static_cast<A*>(z.mutable_data_ptr()), static_cast<A*>(norms.mutable_data_ptr()));

  const Rows<A> unit(arguments, layout, static_cast<const A*>(z.const_data_ptr()));
  const Options<A> options = arguments.options<A>();
  std::vector<Row> sums(sizes.groups * rows);
  sum_tiles<A>(unit, layout, options, {}, sums);
  std::vector<A> most(sums.size()), log_e(sums.size());
  for (size_t row = 0; row < sums.size(); ++row) {
    most[row] = static_cast<A>(options.bounded ? 0 : sums[row].most);
    log_e[row] = static_cast<A>(std::log(sums[row].e));
  }
  if (options.needs_l()) {
    sum_tiles<A>(unit, layout, options, {most.data(), log_e.data()}, sums);
  }

  const bool none = reduction == Reduction::none;
  const auto embedding_sizes = arguments.sources[0].tensor->sizes();
  Tensor loss = empty(
      none ? std::vector<int64_t>(embedding_sizes.begin(), embedding_sizes.end() - 1) : std::vector<int64_t>{}, type);
  auto* losses = static_cast<A*>(loss.mutable_data_ptr());
  if (none) {
    std::fill_n(losses, loss.numel(), A(0));
  }
  auto* numbers = static_cast<A*>(stats.mutable_data_ptr());
  for (int64_t row = 0; row < sizes.groups * rows; ++row) {  // of no anchor
    numbers[row * kNumbers] = std::numeric_limits<A>::infinity();
    std::fill_n(numbers + row * kNumbers + 1, kNumbers - 1, A(0));
  }
  const auto* weights = class_weights ? static_cast<const A*>(class_weights->const_data_ptr()) : nullptr;
  double total = 0;
  int64_t counted = 0;
  for (int64_t group = 0; group < sizes.groups; ++group) {
    const Range anchors = layout.segments()[group * kSegments];
    for (int64_t row = anchors.begin; row < anchors.end; ++row) {
      const int64_t positives = layout.positives(row);
      counted += reduction == Reduction::batchmean || positives > 0;
      if (positives == 0) {
        continue;
      }
      double a = 1.0 / static_cast<double>(positives);
      if (weights) {
        a *= weights[label_of[group * rows + Layout::source(order[row])]];
      }
      const Row& sum = sums[row];
      const double l = double{most[row]} + log_e[row];
      const double value = options.needs_l() ? -sum.v : l * sum.h - sum.v;
      const A saved[] = {most[row], static_cast<A>(sum.h), static_cast<A>(a), log_e[row]};
      std::copy_n(saved, kNumbers, numbers + row * kNumbers);
      total += a * value;
      if (none) {
        losses[group * sizes.embeddings + Layout::source(order[row])] = static_cast<A>(a * value);
      }
    }
  }
  const bool divides = reduction == Reduction::mean || reduction == Reduction::batchmean;
  const double by = divides ? static_cast<double>(std::max<int64_t>(counted, 1)) : 1;
  Tensor divisor = empty({}, type);
  *static_cast<A*>(divisor.mutable_data_ptr()) = static_cast<A>(by);
  if (!none) {
    *losses = static_cast<A>(total / by);
  }
  return {loss, divisor, z, norms, stats, index};
}

// What the backward pass makes of the saved numbers.
template <class A>
struct Saved {
  std::vector<A> a, most, log_e, u;

  explicit Saved(int64_t rows) : a(rows), most(rows), log_e(rows), u(rows) {}
  Weights<A> at(int64_t row) const {
    return {a.data() + row, {most.data() + row, log_e.data() + row}, u.data() + row};
  }
};

template <class A>
Saved<A> weigh(
    const Arguments& arguments, const Tensor& grad, const Tensor& divisor, const A* numbers, const int64_t* order,
    Options<A>& options) {
  const Sizes& sizes = arguments.sizes;
  const int64_t rows = sizes.rows(), all = sizes.groups * rows;
  const auto* grads = static_cast<const A*>(grad.const_data_ptr());
  const double by = *static_cast<const A*>(divisor.const_data_ptr());
  Saved<A> saved(all);
  bool finite = true;
  for (int64_t row = 0; row < all; ++row) {
    const A* number = numbers + row * kNumbers;
    saved.most[row] = number[0];
    saved.log_e[row] = number[3];
    if (order[row] < 0 || number[0] == std::numeric_limits<A>::infinity()) {
      continue;
    }
    const int64_t at = grad.dim() == 0 ? 0 : row / rows * sizes.embeddings + Layout::source(order[row]);
    const double weight = number[2] * (grads[at] / by);
    saved.a[row] = static_cast<A>(weight);
    saved.u[row] = static_cast<A>(weight * number[1] * (options.bounded ? std::exp(-double{number[3]}) : 1));
    finite = finite && std::isfinite(saved.u[row]);
  }
  if (options.bounded && !finite) {  // a large weight of a row that is far from all others
    options.bounded = false;
    return weigh(arguments, grad, divisor, numbers, order, options);
  }
  return saved;
}

template <class A>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Arguments& arguments, const Tensor& grad, const Tensor& divisor, const Tensor& z, const Tensor& norms,
    const Tensor& stats, const Tensor& index, const bool (&wanted)[3], bool wants_temperature) {
  const Sizes& sizes = arguments.sizes;
  const int64_t rows = sizes.rows(), width = arguments.width;
  const auto* order = static_cast<const int64_t*>(index.const_data_ptr());
  const auto* unit_rows = static_cast<const A*>(z.const_data_ptr());
  const Layout layout(sizes, order);
  const Rows<A> unit(arguments, layout, unit_rows);
  const Kernels<A> kernel = kernels<A>();
  Options<A> options = arguments.options<A>();
  const Saved<A> saved =
      weigh(arguments, grad, divisor, static_cast<const A*>(stats.const_data_ptr()), order, options);

  // Whose rows want a gradient: block by block. The first tile of a block sets, the others add.
  const bool wanted_of[kSegments] = {wanted[0] || (sizes.prototype_anchors && wanted[1]), wanted[1], wanted[2]};
  const bool any = wanted_of[0] || wanted_of[1] || wanted_of[2];
  Tensor gradient = empty({any ? sizes.groups * rows : 0, width}, Rows<A>::type());
  auto* of_rows = static_cast<A*>(gradient.mutable_data_ptr());
  std::vector<std::unique_ptr<Matrix<A>>> gradients(layout.blocks().size());
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Block& block = layout.blocks()[i];
    if (!wanted_of[block.segment]) {
      continue;
    }
    A* data = of_rows + block.rows.begin * width;
    gradients[i] = std::make_unique<Matrix<A>>(data, block.rows.size(), width, width);
    if (block.tiles == 0) {
      std::fill_n(data, block.rows.size() * width, A(0));
    }
  }
  const Tensor scratch = unit.scratch(3);
  std::vector<double> sums_of_tiles(wants_temperature ? layout.tiles().size() : 0);
  const auto accumulate = [&](int block, int position, const Matrix<A>& tile, const Matrix<A>& other) {
    if (!gradients[block]) {
      return;
    }
    position == 0 ? gradients[block]->set_product(tile, other) : gradients[block]->add_product(tile, other);
  };
  run_tiles(
      layout, unit.workers(),
      [&](const Tile& tile, int64_t worker) {
        A* data = unit.scratch_of(scratch, worker);
        const View view = unit.cosines(tile, data);
        const double sum = kernel.matrix_tile(
            view, options, data, saved.at(view.rows.begin), saved.at(view.columns.begin), wants_temperature,
            data + unit.stride() * unit.stride());
        if (wants_temperature) {
          sums_of_tiles[&tile - layout.tiles().data()] = sum;
        }
      },
      [&](const Tile& tile, int64_t worker) {
        const A* data = unit.scratch_of(scratch, worker);
        const int64_t height = layout.blocks()[tile.rows].rows.size();
        const int64_t across = layout.blocks()[tile.columns].rows.size();
        accumulate(
            tile.rows, tile.row_position, Matrix<A>(data, height, across, unit.stride()), unit.of(tile.columns));
        if (!tile.diagonal()) {
          accumulate(
              tile.columns, tile.column_position, Matrix<A>(data, across, height, 1, unit.stride()),
              unit.of(tile.rows));
        }
      });

  std::vector<int64_t> place(sizes.groups * rows, -1);  // of each row of the arguments
  for (int64_t row = 0; row < sizes.groups * rows; ++row) {
    if (order[row] >= 0) {
      place[row / rows * rows + Layout::source(order[row])] = row;
    }
  }
  const auto* lengths = static_cast<const A*>(norms.const_data_ptr());
  const auto result = [&](int number) {
    const Source& source = arguments.sources[number];
    if (!wanted[number] || !source.tensor) {
      const ScalarType type = source.tensor ? source.tensor->scalar_type() : arguments.accumulate;
      return empty({0}, type);
    }
    const Tensor& of = *source.tensor;
    const auto size = of.sizes();
    Tensor tensor = empty(std::vector<int64_t>(size.begin(), size.end()), of.scalar_type());
    auto* data = static_cast<char*>(tensor.mutable_data_ptr());
    const int64_t bytes = width * static_cast<int64_t>(of.element_size());
    const int64_t copies = source.shared() ? 1 : sizes.groups, groups = source.shared() ? sizes.groups : 1;
    torch::stable::parallel_for(0, copies * source.rows, 32768 / width + 1, [&](int64_t begin, int64_t end) {
      std::vector<A> sum(width);
      for (int64_t i = begin; i < end; ++i) {
        std::fill(sum.begin(), sum.end(), A(0));
        for (int64_t group = i / source.rows; group < i / source.rows + groups; ++group) {
          const int64_t row = place[group * rows + source.first + i % source.rows];
          if (row >= 0) {
            kernel.add_row_gradient(
                of_rows + row * width, unit_rows + row * width, lengths[row], width, arguments.normalize,
                1 / options.temperature, sum.data());
          }
        }
        kernel.store_row(sum.data(), width, of.scalar_type(), data + i * bytes);
      }
    });
    return tensor;
  };
  Tensor of_temperature = empty(wants_temperature ? std::vector<int64_t>{} : std::vector<int64_t>{0}, Rows<A>::type());
  if (wants_temperature) {
    double sum = 0;
    for (const double part : sums_of_tiles) {
      sum += part;
    }
    *static_cast<A*>(of_temperature.mutable_data_ptr()) = static_cast<A>(-sum / arguments.temperature);
  }
  return {result(0), result(1), result(2), of_temperature};
}

Forward focal_contrastive(
    const Tensor& embeddings, const Tensor& labels, const std::optional<Tensor>& prototypes,
    const std::optional<Tensor>& refs, const std::optional<Tensor>& ref_labels,
    const std::optional<Tensor>& class_weights, const std::optional<Tensor>& temperature_tensor, double temperature,
    double gamma, int64_t focal, bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize,
    int64_t ignore_index, int64_t reduction) {
  const Arguments arguments(
      embeddings, prototypes, refs, temperature_tensor, temperature, gamma, focal, detach_focal, prototype_anchors,
      ref_only, normalize);
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 3, "reduction: expected 0, 1, 2 or 3, got ", reduction);
  STD_TORCH_CHECK(!(reduction == 0 && prototype_anchors), "prototype_anchors: expected false with reduction 0");
  const Sizes& sizes = arguments.sizes;
  const auto of_rows = checked_labels("labels", labels, sizes.groups, sizes.embeddings);
  const auto of_refs = checked_labels("ref_labels", ref_labels, sizes.groups, sizes.refs);
  std::optional<Tensor> weights;
  if (class_weights) {
    check_dtype("class_weights", *class_weights, arguments.accumulate);
    STD_TORCH_CHECK(
        class_weights->dim() == 1 && (!prototypes || class_weights->size(0) == sizes.prototypes),
        "class_weights: expected one number a class, got ", shape_of(*class_weights));
    weights = torch::stable::contiguous(*class_weights);
  }
  const auto run = arguments.accumulate == ScalarType::Double ? forward<double> : forward<float>;
  return run(arguments, of_rows, of_refs, weights, ignore_index, static_cast<Reduction>(reduction));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> focal_contrastive_backward(
    const Tensor& grad, const Tensor& divisor, const Tensor& z, const Tensor& norms, const Tensor& stats,
    const Tensor& index, const Tensor& embeddings, const std::optional<Tensor>& prototypes,
    const std::optional<Tensor>& refs, const std::optional<Tensor>& temperature_tensor, double temperature,
    double gamma, int64_t focal, bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize,
    int64_t /*ignore_index*/, bool embeddings_grad, bool prototypes_grad, bool refs_grad, bool temperature_grad) {
  const Arguments arguments(
      embeddings, prototypes, refs, temperature_tensor, temperature, gamma, focal, detach_focal, prototype_anchors,
      ref_only, normalize);
  const Sizes& sizes = arguments.sizes;
  const int64_t rows = sizes.rows();
  check_dtype("grad", grad, arguments.accumulate);
  check_dtype("divisor", divisor, arguments.accumulate);
  const auto check_saved = [&](const char* name, const Tensor& tensor, ScalarType type, int64_t numbers) {
    check_dtype(name, tensor, type);
    STD_TORCH_CHECK(
        tensor.is_contiguous() && tensor.numel() == sizes.groups * rows * numbers, name,
        ": expected what the forward pass returned, got ", shape_of(tensor));
  };
  check_saved("z", z, arguments.accumulate, arguments.width);
  check_saved("norms", norms, arguments.accumulate, 1);
  check_saved("stats", stats, arguments.accumulate, kNumbers);
  check_saved("index", index, ScalarType::Long, 1);
  STD_TORCH_CHECK(
      grad.dim() == 0 || grad.numel() == sizes.groups * sizes.embeddings,
      "grad: expected a scalar or a number a row, got ", shape_of(grad));
  const bool wanted[] = {embeddings_grad, prototypes_grad, refs_grad};
  const auto run = arguments.accumulate == ScalarType::Double ? backward<double> : backward<float>;
  return run(arguments, torch::stable::contiguous(grad), divisor, z, norms, stats, index, wanted, temperature_grad);
}

}  // namespace
}  // namespace merc::cpu

STABLE_TORCH_LIBRARY_IMPL(merc, CPU, m) {
  m.impl("focal_contrastive", TORCH_BOX(&merc::cpu::focal_contrastive));
  m.impl("focal_contrastive_backward", TORCH_BOX(&merc::cpu::focal_contrastive_backward));
}

// Focal supervised contrastive loss on the GPU: checks, allocation, launches.
//
//   loss_i = w / |P| sum_{j in P(i)} -h (s_ij - L_i),  s_ij = z_i.z_j / tau,  L_i = log sum_j e^s_ij
//   dz_i = sum_j (W_ij + W_ji) z_j / tau,  W_ij = a_i ([j in P(i)] dg/ds + e^(s_ij - L_i) G_i)
//
// h is ((1 - z_i.z_j) / 2)^gamma or (1 - e^(s_ij - L_i))^gamma (focal.h). Forward: rows packed and normalised, then the
// statistics, which take a second launch where h is made of L. Backward: M Z, in parts, then the sum of the parts and
// the normalisation. No atomics on values, no host synchronisation, offsets in 64 bits.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../../checks.h"
#include "arguments.cuh"
#include "backward.cuh"
#include "pack.cuh"
#include "forward.cuh"
#include "../../cuda/launch.cuh"
#include "../../cuda/tensors.cuh"

namespace merc::cuda::contrastive {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

unsigned grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= 0x7fffffff, "embeddings: expected fewer than 2**31 blocks of 64 rows, got ", blocks);
  return static_cast<unsigned>(blocks);
}

// Blocks that share the tiles of a row, so that `wanted` blocks run where there are `blocks` without.
int64_t splits_for(int64_t wanted, int64_t blocks, int64_t columns) {
  return std::clamp<int64_t>(wanted / std::max<int64_t>(blocks, 1), 1, std::max<int64_t>(divide_up(columns, kTile), 1));
}

// f(E) of what z is stored in.
template <class F>
void with_engine(ScalarType z_type, const F& f) {
  switch (z_type) {
    case ScalarType::Double:
      return f(double());
    case ScalarType::BFloat16:
      return f(Bf16());
    case ScalarType::Half:
      return f(F16());
    default:
      return f(float());
  }
}

struct Labels {
  Tensor labels;
  std::optional<Tensor> ref_labels, class_weights;

  Labels(
      const Arguments& arguments, const Tensor& labels_, const std::optional<Tensor>& ref_labels_,
      const std::optional<Tensor>& class_weights_)
      : labels(torch::stable::contiguous(labels_)) {
    check(arguments, "labels", labels, arguments.counts[0]);
    STD_TORCH_CHECK(ref_labels_.has_value() == arguments.refs.has_value(), "ref_labels: expected as refs are given");
    if (ref_labels_) {
      ref_labels = torch::stable::contiguous(*ref_labels_);
      check(arguments, "ref_labels", *ref_labels, arguments.counts[2]);
    }
    if (class_weights_) {
      check_dtype("class_weights", *class_weights_, arguments.accumulate);
      arguments.place.check_here("class_weights", *class_weights_);
      STD_TORCH_CHECK(
          class_weights_->dim() == 1 && (!arguments.prototypes || class_weights_->size(0) == arguments.counts[1]),
          "class_weights: expected a number a class, got ", shape_of(*class_weights_));
      class_weights = torch::stable::contiguous(*class_weights_);
    }
  }

  int64_t classes(const Arguments& arguments) const {
    return class_weights ? class_weights->size(0) : arguments.prototypes ? arguments.counts[1] : -1;
  }

 private:
  static void check(const Arguments& arguments, const char* name, const Tensor& tensor, int64_t count) {
    check_dtype(name, tensor, ScalarType::Long);
    check_shape(name, tensor, arguments.groups, &count, 1);
    arguments.place.check_here(name, tensor);
  }
};

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class A>
Outputs forward(const Arguments& arguments, const Labels& labels, Reduction reduction) {
  const Place& place = arguments.place;
  const ScalarType type = arguments.accumulate;
  const int64_t groups = arguments.groups, rows = arguments.rows();
  Tensor loss = place.empty(reduction == kNone ? arguments.row_shape() : std::vector<int64_t>{}, type);
  Tensor divisor = place.empty({}, type);
  Tensor z = place.empty({groups, rows, arguments.width}, arguments.z_type);
  Tensor norms = place.empty({groups, rows}, type);
  Tensor numbers = place.empty({groups, rows, kNumbers}, type);
  Tensor index = place.empty({groups, rows}, ScalarType::Long);

  const Problem<A> problem = arguments.problem<A>(z, numbers, index);
  const int64_t row_blocks = std::max<int64_t>(divide_up(problem.anchors, kTile), 1);
  const int64_t all_blocks = std::max<int64_t>(groups, 1) * row_blocks;
  const int64_t splits =
      splits_for(2 * int64_t{place.multiprocessors()}, all_blocks, rows - problem.first_candidate);
  const bool merged = splits > 1;
  const Tensor sums = place.empty({merged ? all_blocks * splits * kTile * 5 : 0}, type);
  const Tensor counters = place.empty({merged ? all_blocks : 0}, ScalarType::Int);
  const Tensor totals = place.empty({all_blocks > 1 ? all_blocks * 2 : 0}, ScalarType::Double);

  if (const int64_t packed = std::max(groups * rows * kWarp, merged ? all_blocks : 0)) {
    Packed<A> to{};
    arguments.fill_sources(to.sources);
    to.sources[0].labels = static_cast<const int64_t*>(labels.labels.const_data_ptr());
    to.sources[0].labels_group_stride = labels.labels.dim() == 2 ? arguments.counts[0] : 0;
    to.sources[2].labels = data_of<int64_t>(labels.ref_labels);
    to.sources[2].labels_group_stride = labels.ref_labels && labels.ref_labels->dim() == 2 ? arguments.counts[2] : 0;
    to.z_type = type_of(z);
    to.z = static_cast<char*>(z.mutable_data_ptr());
    to.norms = static_cast<A*>(norms.mutable_data_ptr());
    to.index = static_cast<int64_t*>(index.mutable_data_ptr());
    to.classes = labels.classes(arguments);
    to.counters = static_cast<unsigned*>(counters.mutable_data_ptr());
    to.counted = counters.numel();
    launch(pack<A>, dim3(grid_of(divide_up(packed, kPackThreads))), dim3(kPackThreads), place, problem, to);
  }

  StatsTargets<A> to{};
  to.reduction = reduction;
  to.loss = static_cast<A*>(loss.mutable_data_ptr());
  to.divisor = static_cast<A*>(divisor.mutable_data_ptr());
  to.class_weights = data_of<A>(labels.class_weights);
  to.row_blocks = static_cast<int>(row_blocks);
  to.splits = static_cast<int>(splits);
  to.sums = static_cast<Sums<A>*>(sums.mutable_data_ptr());
  to.counters = static_cast<unsigned*>(counters.mutable_data_ptr());
  to.totals = static_cast<Total*>(totals.mutable_data_ptr());
  to.ticket = all_blocks > 1 ? take_ticket(place) : 0;
  with_engine(arguments.z_type, [&](auto e) {
    using E = decltype(e);
    if constexpr (std::is_same_v<typename Engine<E>::A, A>) {
      const auto run = [&](Pass pass) {
        to.pass = pass;
        launch_with<TileMemory<E>>(
            stats<E>, dim3(grid_of(all_blocks * splits)), dim3(kTileThreads), place, problem, to);
      };
      if (problem.focal == Focal::probability && problem.power != Power::zero) {
        run(Pass::first);
        run(Pass::second);
      } else {
        run(Pass::only);
      }
    }
  });
  return {loss, divisor, z, norms, numbers, index};
}

struct Wanted {
  bool inputs[kSources];
  bool temperature;
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class A>
Gradients backward(
    const Arguments& arguments, const Tensor& grad, const Tensor& divisor, const Tensor& z, const Tensor& norms,
    const Tensor& numbers, const Tensor& index, const Wanted& wanted) {
  const Place& place = arguments.place;
  const ScalarType type = arguments.accumulate;
  const Problem<A> problem = arguments.problem<A>(z, numbers, index);
  Unpacked<A> from{};
  arguments.fill_sources(from.sources);
  std::vector<Tensor> gradients;
  int64_t first = problem.rows, end = 0, target_rows = 0;
  for (int i = 0; i < kSources; ++i) {
    const std::optional<Tensor> source = arguments.source(i);
    const bool given = wanted.inputs[i] && source;
    gradients.push_back(
        place.empty(given ? size_of(*source) : std::vector<int64_t>{0}, source ? source->scalar_type() : type));
    if (given) {
      const bool shared = source->dim() == 2;
      from.targets[i] = {static_cast<char*>(gradients[i].mutable_data_ptr()),
                         shared ? arguments.counts[i] : arguments.groups * arguments.counts[i],
                         shared ? arguments.groups : 1};
      target_rows += from.targets[i].rows;
      first = std::min<int64_t>(first, from.sources[i].first);
      end = std::max<int64_t>(end, from.sources[i].first + from.sources[i].count);
    }
  }
  gradients.push_back(place.empty(wanted.temperature ? std::vector<int64_t>{} : std::vector<int64_t>{0}, type));
  if (wanted.temperature) {
    first = 0;
    end = std::max<int64_t>(end, problem.anchors);
  }
  const int64_t rows = std::max<int64_t>(end - first, 0);

  GradientTargets<A> to{};
  to.grad = static_cast<const A*>(grad.const_data_ptr());
  to.grad_is_scalar = grad.dim() == 0;
  to.divisor = static_cast<const A*>(divisor.const_data_ptr());
  to.first_row = static_cast<int>(first);
  to.end_row = static_cast<int>(end);
  to.row_blocks = static_cast<int>(divide_up(rows, kTile));
  const int64_t all_blocks = arguments.groups * to.row_blocks;
  Tensor parts = place.empty({0}, type), slopes = parts;
  with_engine(arguments.z_type, [&](auto e) {
    using E = decltype(e);
    if constexpr (std::is_same_v<typename Engine<E>::A, A>) {
      to.outs = static_cast<int>(divide_up(arguments.width, Engine<E>::kChunk * Engine<E>::kOutChunks));
      to.splits = static_cast<int>(splits_for(place.multiprocessors(), all_blocks * to.outs, problem.rows));
      parts = place.empty(std::vector<int64_t>{to.splits, arguments.groups, rows, arguments.width}, type);
      const int64_t count = wanted.temperature ? std::max<int64_t>(all_blocks * to.splits, 1) : 0;
      slopes = place.empty(std::vector<int64_t>{count}, ScalarType::Double);
      to.parts = static_cast<A*>(parts.mutable_data_ptr());
      to.slopes = wanted.temperature ? static_cast<double*>(slopes.mutable_data_ptr()) : nullptr;
      if (all_blocks > 0) {
        launch_with<TileMemory<E>>(
            gradient<E>, dim3(grid_of(all_blocks * to.splits * to.outs)), dim3(kTileThreads), place, problem, to);
      }
    }
  });

  from.norms = static_cast<const A*>(norms.const_data_ptr());
  from.parts = to.parts;
  from.splits = to.splits;
  from.first_row = to.first_row;
  from.part_rows = static_cast<int>(rows);
  from.slopes = to.slopes;
  from.slope_count = all_blocks * to.splits;
  from.to_temperature = static_cast<A*>(gradients[kSources].mutable_data_ptr());
  unsigned threads = kWarp;
  while (threads < kUnpackThreads && threads * kHeld < static_cast<unsigned>(arguments.width)) {
    threads *= 2;
  }
  const dim3 block(threads, threads == kWarp ? 4 : 1);
  const int64_t blocks = divide_up(target_rows, block.y) + (wanted.temperature ? 1 : 0);
  if (blocks > 0) {
    launch(unpack<A>, dim3(grid_of(blocks)), block, place, problem, from);
  }
  return {gradients[0], gradients[1], gradients[2], gradients[3]};
}

Outputs focal_contrastive(
    const Tensor& embeddings, const Tensor& labels, const std::optional<Tensor>& prototypes,
    const std::optional<Tensor>& refs, const std::optional<Tensor>& ref_labels,
    const std::optional<Tensor>& class_weights, const std::optional<Tensor>& temperature_tensor, double temperature,
    double gamma, int64_t focal, bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize,
    int64_t ignore_index, int64_t reduction) {
  const Arguments arguments(
      embeddings, prototypes, refs, temperature_tensor,
      {temperature, gamma, focal, detach_focal, prototype_anchors, ref_only, normalize, ignore_index});
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 3, "reduction: expected 0, 1, 2 or 3, got ", reduction);
  STD_TORCH_CHECK(
      reduction != kNone || !prototype_anchors, "reduction: expected not 0 where prototypes are anchors");
  const Labels of(arguments, labels, ref_labels, class_weights);
  const auto run = arguments.accumulate == ScalarType::Double ? forward<double> : forward<float>;
  return run(arguments, of, static_cast<Reduction>(reduction));
}

Gradients focal_contrastive_backward(
    const Tensor& grad, const Tensor& divisor, const Tensor& z, const Tensor& norms, const Tensor& stats,
    const Tensor& index, const Tensor& embeddings, const std::optional<Tensor>& prototypes,
    const std::optional<Tensor>& refs, const std::optional<Tensor>& temperature_tensor, double temperature,
    double gamma, int64_t focal, bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize,
    int64_t ignore_index, bool embeddings_grad, bool prototypes_grad, bool refs_grad, bool temperature_grad) {
  const Arguments arguments(
      embeddings, prototypes, refs, temperature_tensor,
      {temperature, gamma, focal, detach_focal, prototype_anchors, ref_only, normalize, ignore_index});
  const ScalarType type = arguments.accumulate;
  const int64_t groups = arguments.groups, rows = arguments.rows();
  const auto check = [&](const char* name, const Tensor& tensor, ScalarType expected,
                         const std::vector<int64_t>& size) {
    check_dtype(name, tensor, expected);
    arguments.place.check_here(name, tensor);
    STD_TORCH_CHECK(
        size_of(tensor) == size && tensor.is_contiguous(), name, ": expected what the forward pass gave, got ",
        shape_of(tensor));
  };
  check("divisor", divisor, type, {});
  check("z", z, arguments.z_type, {groups, rows, arguments.width});
  check("norms", norms, type, {groups, rows});
  check("stats", stats, type, {groups, rows, kNumbers});
  check("index", index, ScalarType::Long, {groups, rows});
  check_dtype("grad", grad, type);
  arguments.place.check_here("grad", grad);
  STD_TORCH_CHECK(
      grad.dim() == 0 || size_of(grad) == arguments.row_shape(), "grad: expected a scalar or a number a row, got ",
      shape_of(grad));
  const auto run = type == ScalarType::Double ? backward<double> : backward<float>;
  return run(
      arguments, torch::stable::contiguous(grad), divisor, z, norms, stats, index,
      {{embeddings_grad, prototypes_grad, refs_grad}, temperature_grad});
}

}  // namespace
}  // namespace merc::cuda::contrastive

STABLE_TORCH_LIBRARY_IMPL(merc, CUDA, m) {
  m.impl("focal_contrastive", TORCH_BOX(&merc::cuda::contrastive::focal_contrastive));
  m.impl("focal_contrastive_backward", TORCH_BOX(&merc::cuda::contrastive::focal_contrastive_backward));
}

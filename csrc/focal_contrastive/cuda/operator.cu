// Focal supervised contrastive loss on the GPU: allocation and launches.
//
//   loss_i = w / |P| sum_{j in P(i)} -h (s_ij - L_i),  s_ij = z_i.z_j / tau,  L_i = log sum_j e^s_ij
//   dz_i = sum_j (W_ij + W_ji) z_j / tau,  W_ij = a_i ([j in P(i)] dg/ds + e^(s_ij - L_i) G_i)
//
// h is ((1 - z_i.z_j) / 2)^gamma or (1 - e^(s_ij - L_i))^gamma (focal.h). Forward: rows packed and normalised, then the
// statistics, which take a second launch where h is made of L. Backward: M Z, in parts, then the sum of the parts and
// the normalisation. No atomics on values, no host synchronisation, offsets in 64 bits.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../../cuda/launch.cuh"
#include "../../stack.h"
#include "../arguments.h"
#include "backward.cuh"
#include "forward.cuh"
#include "pack.cuh"

namespace merc::focal_contrastive::cuda {
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

// What unit rows are stored in: 16 bits where all rows are of one such type, for the tensor cores.
ScalarType z_type_of(const Arguments& arguments) {
  const ScalarType type = arguments.embeddings().scalar_type();
  return arguments.same_type && is_half(type) ? type : arguments.accumulate;
}

void check_width(const Arguments& arguments) {
  STD_TORCH_CHECK(
      arguments.width > 0, "embeddings: expected at least one column, got ", shape_of(arguments.embeddings()));
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class A>
Outputs forward(const ForwardArguments& call) {
  const Arguments& arguments = call.arguments;
  const Place place(arguments.embeddings());
  const ScalarType type = arguments.accumulate, z_type = z_type_of(arguments);
  const int64_t groups = arguments.groups, rows = arguments.rows();
  Tensor loss = place.empty(call.reduction == Reduction::none ? arguments.row_shape() : std::vector<int64_t>{}, type);
  Tensor divisor = place.empty({}, type);
  Tensor z = place.empty({groups, rows, arguments.width}, z_type);
  Tensor norms = place.empty({groups, rows}, type);
  Tensor stats = place.empty({groups, rows, kStats}, type);
  Tensor index = place.empty({groups, rows}, ScalarType::Long);

  const Batch<A> batch(arguments, z, stats, index);
  const int64_t row_blocks = std::max<int64_t>(divide_up(batch.anchors, kTile), 1);
  const int64_t all_blocks = std::max<int64_t>(groups, 1) * row_blocks;
  const int64_t splits = splits_for(2 * int64_t{place.multiprocessors()}, all_blocks, rows - batch.first_candidate);
  const bool merged = splits > 1;
  const Tensor sums = place.empty({merged ? all_blocks * splits * kTile * 5 : 0}, type);
  const int64_t counted = (merged ? all_blocks : 0) + (all_blocks > 1 ? 1 : 0);
  const Tensor counters = place.empty({counted}, ScalarType::Int);
  const Tensor totals = place.empty({all_blocks > 1 ? all_blocks * 2 : 0}, ScalarType::Double);

  if (const int64_t packed = std::max(groups * rows * kWarp, counted)) {
    Packed<A> to{};
    for (int i = 0; i < kSources; ++i) {
      to.sources[i] = SourceRows(arguments.sources[i]);
    }
    const std::optional<Tensor> labels[kSources] = {call.labels, std::nullopt, call.ref_labels};
    for (int i = 0; i < kSources; ++i) {
      to.sources[i].labels = data_of<int64_t>(labels[i]);
      to.sources[i].labels_group_stride = labels[i] && labels[i]->dim() == 2 ? arguments.sources[i].rows : 0;
    }
    to.z_type = type_of(z);
    to.z = static_cast<char*>(z.mutable_data_ptr());
    to.norms = static_cast<A*>(norms.mutable_data_ptr());
    to.index = static_cast<int64_t*>(index.mutable_data_ptr());
    to.classes = call.classes();
    to.counters = static_cast<unsigned*>(counters.mutable_data_ptr());
    to.counted = counted;
    launch(pack<A>, dim3(grid_of(divide_up(packed, kPackThreads))), dim3(kPackThreads), place, batch, to);
  }

  ForwardTargets<A> to{};
  to.reduction = call.reduction;
  to.loss = static_cast<A*>(loss.mutable_data_ptr());
  to.divisor = static_cast<A*>(divisor.mutable_data_ptr());
  to.class_weights = data_of<A>(call.class_weights);
  to.row_blocks = static_cast<int>(row_blocks);
  to.splits = static_cast<int>(splits);
  to.sums = static_cast<RowSums<A>*>(sums.mutable_data_ptr());
  to.counters = static_cast<unsigned*>(counters.mutable_data_ptr());
  to.totals = static_cast<Total*>(totals.mutable_data_ptr());
  to.counter = all_blocks > 1 ? to.counters + counted - 1 : nullptr;
  with_engine(z_type_of(arguments), [&](auto e) {
    using E = decltype(e);
    if constexpr (std::is_same_v<typename Engine<E>::A, A>) {
      const auto run = [&](Pass pass) {
        to.pass = pass;
        launch_with<TileMemory<E>>(
            forward_tiles<E>, dim3(grid_of(all_blocks * splits)), dim3(kTileThreads), place, batch, to);
      };
      if (batch.options.focal == Focal::probability && batch.power != Power::zero) {
        run(Pass::first);
        run(Pass::second);
      } else {
        run(Pass::only);
      }
    }
  });
  return {loss, divisor, z, norms, stats, index};
}

Outputs forward_operator(const ForwardArguments& call) {
  check_width(call.arguments);
  return with_accumulate(call.arguments.accumulate, [&]<class A>(A) { return forward<A>(call); });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class A>
Gradients backward(const BackwardArguments& call) {
  const Arguments& arguments = call.arguments;
  const Wanted& wanted = call.wanted;
  const Place place(arguments.embeddings());
  const ScalarType type = arguments.accumulate;
  Batch<A> batch(arguments, call.z, call.stats, call.index);
  if (call.all_anchors) {
    batch.anchors = batch.rows;
  }
  Unpacked<A> from{};
  std::vector<Tensor> gradients;
  int64_t first = batch.rows, end = 0, target_rows = 0;
  for (int i = 0; i < kSources; ++i) {
    const Source& source = arguments.sources[i];
    from.sources[i] = SourceRows(source);
    const bool given = wanted.sources[i] && source.tensor;
    gradients.push_back(
        place.empty(given ? size_of(*source.tensor) : std::vector<int64_t>{0}, source.tensor ? source.type : type));
    if (given) {
      from.targets[i] = {
          static_cast<char*>(gradients[i].mutable_data_ptr()),
          source.shared() ? source.rows : arguments.groups * source.rows, source.shared() ? arguments.groups : 1};
      target_rows += from.targets[i].rows;
      first = std::min<int64_t>(first, from.sources[i].first);
      end = std::max<int64_t>(end, from.sources[i].first + from.sources[i].count);
    }
  }
  gradients.push_back(place.empty(wanted.temperature ? std::vector<int64_t>{} : std::vector<int64_t>{0}, type));
  if (wanted.temperature) {
    first = 0;
    end = std::max<int64_t>(end, batch.anchors);
  }
  const int64_t rows = std::max<int64_t>(end - first, 0);

  BackwardTargets<A> to{};
  to.grad = static_cast<const A*>(call.grad.const_data_ptr());
  to.grad_is_scalar = call.grad.dim() == 0;
  to.divisor = static_cast<const A*>(call.divisor.const_data_ptr());
  to.first_row = static_cast<int>(first);
  to.end_row = static_cast<int>(end);
  to.row_blocks = static_cast<int>(divide_up(rows, kTile));
  const int64_t all_blocks = arguments.groups * to.row_blocks;
  Tensor parts = place.empty({0}, type), slopes = parts;
  with_engine(z_type_of(arguments), [&](auto e) {
    using E = decltype(e);
    if constexpr (std::is_same_v<typename Engine<E>::A, A>) {
      to.outs = static_cast<int>(divide_up(arguments.width, Engine<E>::kChunk * Engine<E>::kOutChunks));
      to.splits = static_cast<int>(splits_for(place.multiprocessors(), all_blocks * to.outs, batch.rows));
      parts = place.empty(std::vector<int64_t>{to.splits, arguments.groups, rows, arguments.width}, type);
      const int64_t count = wanted.temperature ? std::max<int64_t>(all_blocks * to.splits, 1) : 0;
      slopes = place.empty(std::vector<int64_t>{count}, ScalarType::Double);
      to.parts = static_cast<A*>(parts.mutable_data_ptr());
      to.slopes = wanted.temperature ? static_cast<double*>(slopes.mutable_data_ptr()) : nullptr;
      if (all_blocks > 0) {
        launch_with<TileMemory<E>>(
            backward_tiles<E>, dim3(grid_of(all_blocks * to.splits * to.outs)), dim3(kTileThreads), place, batch, to);
      }
    }
  });

  from.norms = static_cast<const A*>(call.norms.const_data_ptr());
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
    launch(unpack<A>, dim3(grid_of(blocks)), block, place, batch, from);
  }
  return {gradients[0], gradients[1], gradients[2], gradients[3]};
}

Gradients backward_operator(const BackwardArguments& call) {
  check_width(call.arguments);
  call.check_saved(z_type_of(call.arguments));
  return with_accumulate(call.arguments.accumulate, [&]<class A>(A) { return backward<A>(call); });
}

}  // namespace
}  // namespace merc::focal_contrastive::cuda

STABLE_TORCH_LIBRARY_IMPL(merc, CUDA, m) {
  namespace op = merc::focal_contrastive;
  m.impl("focal_contrastive", merc::boxed<op::ForwardArguments, op::cuda::forward_operator>);
  m.impl("focal_contrastive_backward", merc::boxed<op::BackwardArguments, op::cuda::backward_operator>);
}

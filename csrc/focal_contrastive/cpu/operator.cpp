// Focal contrastive loss on the CPU: the operators and the checks of their arguments.
//
//   loss_i = a_i sum over positives of -h (s_ij - L_i),  s_ij = z_i.z_j / tau,  L_i = logsumexp_j s_ij,  a_i = w / |P(i)|
//   dZ = M Z / tau,  M = W + W',  W_ij = a_i ([j positive] dg/ds + p_ij G_i),  G_i = sum over positives of dg/dL
//   d tau = -sum W_ij s_ij / tau (without h' of the similarity form),  dX = (dZ - (z.dZ) z) / |x|
//
// S is symmetric, and so is M: a pair of blocks of rows is one tile, whose cosines serve both. A tile adds to its two
// blocks when the tiles before it have, in an order that does not depend on the threads: nor do the bits. In
// focal_contrastive/: the places of the rows (layout.h), the arithmetic on a tile (product.h, sums.h, matrix.h), the
// two passes (forward.h, backward.h); the focal formula is in ../focal.h.

#include "operator.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../../checks.h"
#include "backward.h"
#include "forward.h"

namespace merc::cpu {
namespace {

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

// What a loss is computed from beside the rows, checked.
struct Targets {
  std::vector<int64_t> labels;  // of all rows, see all_labels
  std::optional<Tensor> class_weights;
  int64_t ignore_index;
  Reduction reduction;

  Targets(
      const Arguments& arguments, const Tensor& labels_, const std::optional<Tensor>& ref_labels,
      const std::optional<Tensor>& class_weights_, int64_t ignore_index_, int64_t reduction_)
      : ignore_index(ignore_index_), reduction(static_cast<Reduction>(reduction_)) {
    const Sizes& sizes = arguments.sizes;
    STD_TORCH_CHECK(reduction_ >= 0 && reduction_ <= 3, "reduction: expected 0, 1, 2 or 3, got ", reduction_);
    STD_TORCH_CHECK(
        !(reduction_ == 0 && sizes.prototype_anchors), "prototype_anchors: expected false with reduction 0");
    const auto of_rows = checked_labels("labels", labels_, sizes.groups, sizes.embeddings);
    const auto of_refs = checked_labels("ref_labels", ref_labels, sizes.groups, sizes.refs);
    const bool prototypes = arguments.sources[1].tensor.has_value();
    if (class_weights_) {
      check_dtype("class_weights", *class_weights_, arguments.accumulate);
      STD_TORCH_CHECK(
          class_weights_->dim() == 1 && (!prototypes || class_weights_->size(0) == sizes.prototypes),
          "class_weights: expected one number a class, got ", shape_of(*class_weights_));
      class_weights = torch::stable::contiguous(*class_weights_);
    }
    const int64_t classes = prototypes ? sizes.prototypes : class_weights ? class_weights->size(0) : -1;
    labels = all_labels(sizes, *of_rows, of_refs, classes, ignore_index);
  }
};

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class A>
Forward run_forward(const Arguments& arguments, const Targets& targets) {
  Batch<A> batch(arguments, targets.labels, targets.ignore_index, /*keep=*/false);
  const Loss loss = forward(batch, targets.labels, targets.class_weights, targets.reduction);
  return {loss.loss, loss.divisor, batch.z(), batch.norms(), loss.stats, batch.index()};
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
  const Targets targets(arguments, labels, ref_labels, class_weights, ignore_index, reduction);
  return arguments.accumulate == ScalarType::Double ? run_forward<double>(arguments, targets)
                                                    : run_forward<float>(arguments, targets);
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
  const bool wanted[] = {embeddings_grad, prototypes_grad, refs_grad, temperature_grad};
  const auto run = [&]<class A>(A) {
    Batch<A> batch(arguments, z, norms, index);
    return backward(batch, torch::stable::contiguous(grad), divisor, stats, wanted, /*exact=*/false);
  };
  return arguments.accumulate == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace

// Both passes at once, for a gradient of 1 of a loss that is one number: no cosine is computed twice.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> focal_contrastive_with_gradients(
    const Tensor& embeddings, const Tensor& labels, const std::optional<Tensor>& prototypes,
    const std::optional<Tensor>& refs, const std::optional<Tensor>& ref_labels,
    const std::optional<Tensor>& class_weights, const std::optional<Tensor>& temperature_tensor, double temperature,
    double gamma, int64_t focal, bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize,
    int64_t ignore_index, int64_t reduction, bool embeddings_grad, bool prototypes_grad, bool refs_grad,
    bool temperature_grad) {
  const Arguments arguments(
      embeddings, prototypes, refs, temperature_tensor, temperature, gamma, focal, detach_focal, prototype_anchors,
      ref_only, normalize);
  STD_TORCH_CHECK(reduction != 0, "reduction: expected 1, 2 or 3, got 0");
  const Targets targets(arguments, labels, ref_labels, class_weights, ignore_index, reduction);
  const bool wanted[] = {embeddings_grad, prototypes_grad, refs_grad, temperature_grad};
  const auto run = [&]<class A>(A) -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> {
    Batch<A> batch(arguments, targets.labels, targets.ignore_index, /*keep=*/true);
    const Loss loss = forward(batch, targets.labels, targets.class_weights, targets.reduction);
    Tensor one = empty({}, kType<A>);
    *static_cast<A*>(one.mutable_data_ptr()) = 1;
    auto gradients = backward(batch, one, loss.divisor, loss.stats, wanted, /*exact=*/true);
    return std::tuple_cat(std::make_tuple(loss.loss), std::move(gradients));
  };
  return arguments.accumulate == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace merc::cpu

STABLE_TORCH_LIBRARY_IMPL(merc, CPU, m) {
  m.impl("focal_contrastive", TORCH_BOX(&merc::cpu::focal_contrastive));
  m.impl("focal_contrastive_backward", TORCH_BOX(&merc::cpu::focal_contrastive_backward));
  m.impl("focal_contrastive_with_gradients", TORCH_BOX(&merc::cpu::focal_contrastive_with_gradients));
}

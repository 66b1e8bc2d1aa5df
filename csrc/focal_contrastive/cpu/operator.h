// The operator of focal_contrastive.cpp that the module calls without the dispatcher.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace merc::cpu {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> focal_contrastive_with_gradients(
    const Tensor& embeddings, const Tensor& labels, const std::optional<Tensor>& prototypes,
    const std::optional<Tensor>& refs, const std::optional<Tensor>& ref_labels,
    const std::optional<Tensor>& class_weights, const std::optional<Tensor>& temperature_tensor, double temperature,
    double gamma, int64_t focal, bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize,
    int64_t ignore_index, int64_t reduction, bool embeddings_grad, bool prototypes_grad, bool refs_grad,
    bool temperature_grad);

}  // namespace merc::cpu

// The operators of kd_divergence.cpp, for the module: it calls them without the dispatcher.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace merc::cpu {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> kd_divergence(
    const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& row_temperature,
    const std::optional<Tensor>& labels, const std::optional<Tensor>& row_weights, double temperature,
    int64_t direction, double beta, double ce_weight, bool scale_by_t2, int64_t ignore_index, int64_t reduction,
    int64_t save);

std::tuple<Tensor, Tensor> kd_divergence_backward(
    const Tensor& grad, const Tensor& divisor, const Tensor& saved, const Tensor& student, const Tensor& teacher,
    const std::optional<Tensor>& row_temperature, const std::optional<Tensor>& labels,
    const std::optional<Tensor>& row_weights, double temperature, int64_t direction, double beta, double ce_weight,
    bool scale_by_t2, int64_t ignore_index, bool student_grad, bool teacher_grad);

}  // namespace merc::cpu

// Temperature-scaled divergence of a student from its teacher on the CPU: checks and allocation. The rows are in
// kd_divergence/: each by itself (wide.h), or where classes are few many at once (narrow.h).
//
//   loss_r = weight_r (T^2 D(p, q) + ce_weight CE),  p = softmax(teacher / T),  q = softmax(student / T)
//
// with D one of KL(p|q), KL(q|p) and (1 - beta) KL(q|m) + beta KL(p|m), m = beta p + (1 - beta) q.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../../checks.h"
#include "../../cpu/allocate.h"
#include "operator.h"
#include "kernels.h"
#include "rows.h"

namespace merc::cpu {
namespace {

Tensor with_unit_stride(const Tensor& logits) {
  return logits.dim() > 0 && logits.stride(-1) == 1 ? logits : torch::stable::contiguous(logits);
}

Logits logits_of(const Tensor& tensor) {
  const bool grouped = tensor.dim() == 3;
  return {tensor.const_data_ptr(), tensor.scalar_type(), tensor.size(-2), grouped ? tensor.stride(0) : 0,
          tensor.stride(-2), tensor.size(-1), !grouped};
}

// The tensors of a call, checked, kept alive, with a unit last stride.
struct Arguments {
  Tensor student, teacher;
  std::optional<Tensor> temperatures, labels, weights;
  ScalarType accumulate;
  Problem problem;

  Arguments(
      const Tensor& student_, const Tensor& teacher_, const std::optional<Tensor>& temperatures_,
      const std::optional<Tensor>& labels_, const std::optional<Tensor>& weights_, double temperature,
      int64_t direction, double beta, double ce_weight, bool scale_by_t2, int64_t ignore_index)
      : student(with_unit_stride(student_)), teacher(with_unit_stride(teacher_)) {
    STD_TORCH_CHECK(
        student.dim() == 2 || student.dim() == 3, "student: expected shape (N, C) or (G, N, C), got ",
        shape_of(student));
    STD_TORCH_CHECK(direction >= 0 && direction <= 2, "direction: expected 0, 1 or 2, got ", direction);
    check_float("student", student);
    check_float("teacher", teacher);
    const int64_t groups = student.dim() == 3 ? student.size(0) : 1;
    const int64_t rows = student.size(-2), classes = student.size(-1);
    const int64_t tail[] = {rows, classes};
    STD_TORCH_CHECK(classes > 0, "student: expected at least one class, got ", shape_of(student));
    check_shape("teacher", teacher, groups, tail, 2);
    const bool wide = student.scalar_type() == ScalarType::Double || teacher.scalar_type() == ScalarType::Double;
    accumulate = wide ? ScalarType::Double : ScalarType::Float;
    problem.student = logits_of(student);
    problem.teacher = logits_of(teacher);
    problem.groups = groups;
    problem.rows_a_group = rows;
    problem.classes = classes;
    problem.temperatures = nullptr;
    problem.wide_numbers = wide;
    if (temperatures_) {
      check_dtype("row_temperature", *temperatures_, accumulate);
      check_shape("row_temperature", *temperatures_, 0, tail, 1);
      temperatures = torch::stable::contiguous(*temperatures_);
      problem.temperatures = temperatures->const_data_ptr();
    }
    if (labels_) {
      check_dtype("labels", *labels_, ScalarType::Long);
      check_shape("labels", *labels_, groups, tail, 1);
      labels = torch::stable::contiguous(*labels_);
      problem.labels = {static_cast<const int64_t*>(labels->const_data_ptr()), labels->dim() == 2 ? rows : 0};
    } else {
      STD_TORCH_CHECK(ce_weight == 0, "labels: expected a tensor, as ce_weight is not 0");
    }
    if (weights_) {
      check_dtype("row_weights", *weights_, accumulate);
      check_shape("row_weights", *weights_, groups, tail, 1);
      weights = torch::stable::contiguous(*weights_);
      problem.weights = {weights->const_data_ptr(), weights->dim() == 2 ? rows : 0};
    }
    problem.temperature = temperature;
    problem.beta = beta;
    problem.ce_weight = ce_weight;
    problem.scale_by_t2 = scale_by_t2;
    problem.ignore_index = ignore_index;
    problem.direction = static_cast<Direction>(direction);
    problem.divisor = 1;
  }

  std::vector<int64_t> row_shape() const {
    return student.dim() == 3 ? std::vector<int64_t>{problem.groups, problem.rows_a_group}
                              : std::vector<int64_t>{problem.rows_a_group};
  }

  int64_t rows() const { return problem.groups * problem.rows_a_group; }
};

template <class A>
A sum_in_order(const void* losses, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += static_cast<const A*>(losses)[i];
  }
  return static_cast<A>(sum);
}

template <class A>
void put(const Tensor& scalar, A value) {
  *static_cast<A*>(scalar.mutable_data_ptr()) = value;
}

void put(const Tensor& scalar, ScalarType type, double value) {
  type == ScalarType::Double ? put<double>(scalar, value) : put<float>(scalar, static_cast<float>(value));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> kd_divergence(
    const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& row_temperature,
    const std::optional<Tensor>& labels, const std::optional<Tensor>& row_weights, double temperature,
    int64_t direction, double beta, double ce_weight, bool scale_by_t2, int64_t ignore_index, int64_t reduction,
    int64_t save) {
  Arguments arguments(
      student, teacher, row_temperature, labels, row_weights, temperature, direction, beta, ce_weight, scale_by_t2,
      ignore_index);
  STD_TORCH_CHECK(
      reduction == 0 || reduction == 1 || reduction == 3, "reduction: expected 0, 1 or 3, got ", reduction);
  STD_TORCH_CHECK(
      save >= 0 && save <= 2 && !(save == 2 && reduction == 0),
      "save: expected 0, 1, or 2 with a reduction to a scalar, got ", save);
  Problem& problem = arguments.problem;
  const ScalarType type = arguments.accumulate;
  const int64_t rows = arguments.rows();
  if (static_cast<Reduction>(reduction) == Reduction::batchmean) {
    int64_t kept = 0;
    for (int64_t row = 0; row < rows && labels; ++row) {
      kept += problem.kept(row);
    }
    problem.divisor = static_cast<double>(labels ? kept : rows);
    problem.divisor = problem.divisor > 1 ? problem.divisor : 1;
  }
  problem.save = static_cast<Save>(save);
  Tensor losses = empty(arguments.row_shape(), type);
  Tensor saved = [&] {
    switch (problem.save) {
      case Save::nothing:
        return empty({0}, type);
      case Save::numbers:
        return empty({rows, kNumbers}, type);
      default: {
        const auto size = arguments.student.sizes();
        return empty(std::vector<int64_t>(size.begin(), size.end()), arguments.student.scalar_type());
      }
    }
  }();
  problem.losses = losses.mutable_data_ptr();
  problem.rows = saved.mutable_data_ptr();
  problem.student_gradient = {saved.mutable_data_ptr(), arguments.student.scalar_type()};
  run(problem, true);
  Tensor divisor = empty({}, type);
  put(divisor, type, problem.divisor);
  if (static_cast<Reduction>(reduction) == Reduction::none) {
    return {losses, divisor, saved};
  }
  const double sum = problem.wide_numbers ? sum_in_order<double>(problem.losses, rows)
                                          : sum_in_order<float>(problem.losses, rows);
  Tensor loss = empty({}, type);
  put(loss, type, sum / problem.divisor);
  return {loss, divisor, saved};
}

std::tuple<Tensor, Tensor> kd_divergence_backward(
    const Tensor& grad, const Tensor& divisor, const Tensor& saved, const Tensor& student, const Tensor& teacher,
    const std::optional<Tensor>& row_temperature, const std::optional<Tensor>& labels,
    const std::optional<Tensor>& row_weights, double temperature, int64_t direction, double beta, double ce_weight,
    bool scale_by_t2, int64_t ignore_index, bool student_grad, bool teacher_grad) {
  Arguments arguments(
      student, teacher, row_temperature, labels, row_weights, temperature, direction, beta, ce_weight, scale_by_t2,
      ignore_index);
  Problem& problem = arguments.problem;
  const ScalarType type = arguments.accumulate;
  check_dtype("grad", grad, type);
  check_dtype("divisor", divisor, type);
  check_dtype("saved", saved, type);
  STD_TORCH_CHECK(
      saved.dim() == 2 && saved.size(0) == arguments.rows() && saved.size(1) == kNumbers && saved.is_contiguous(),
      "saved: expected shape (", arguments.rows(), ", ", kNumbers, "), got ", shape_of(saved));
  STD_TORCH_CHECK(
      grad.numel() == arguments.rows() || grad.dim() == 0, "grad: expected a scalar or a number a row, got ",
      shape_of(grad));
  const Tensor grads = torch::stable::contiguous(grad);
  problem.grad = grads.const_data_ptr();
  problem.grad_is_scalar = grad.dim() == 0;
  problem.rows = saved.mutable_data_ptr();
  problem.divisor = problem.number(divisor.const_data_ptr(), 0);
  const auto gradient = [&](bool wanted, const Tensor& of, Gradient& target) {
    const auto size = of.sizes();
    Tensor tensor = empty(
        wanted ? std::vector<int64_t>(size.begin(), size.end()) : std::vector<int64_t>{0}, of.scalar_type());
    if (wanted) {
      target = {tensor.mutable_data_ptr(), of.scalar_type()};
    }
    return tensor;
  };
  Tensor of_student = gradient(student_grad, arguments.student, problem.student_gradient);
  Tensor of_teacher = gradient(teacher_grad, arguments.teacher, problem.teacher_gradient);
  run(problem, false);
  return {of_student, of_teacher};
}

}  // namespace merc::cpu

STABLE_TORCH_LIBRARY_IMPL(merc, CPU, m) {
  m.impl("kd_divergence", TORCH_BOX(&merc::cpu::kd_divergence));
  m.impl("kd_divergence_backward", TORCH_BOX(&merc::cpu::kd_divergence_backward));
}

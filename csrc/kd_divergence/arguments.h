// The arguments of the divergence, checked, for every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "../checks.h"
#include "../reduction.h"
#include "../tensors.h"
#include "options.h"

namespace merc::kd_divergence {

// What both passes take: logits (G, N, C), or (N, C) that stand for one group or are shared by the student's groups.
struct Arguments {
  Tensor student, teacher;  // with a unit last stride
  std::optional<Tensor> row_temperature, labels, row_weights;
  Options<double> options;
  int64_t groups = 1, rows_a_group, classes;
  ScalarType accumulate;

  template <class Reader>
  explicit Arguments(Reader& from)
      : student(from.tensor()),
        teacher(from.tensor()),
        row_temperature(from.optional_tensor()),
        labels(from.optional_tensor()),
        row_weights(from.optional_tensor()),
        options(Options<double>::read(from)) {
    check();
  }

  int64_t rows() const { return groups * rows_a_group; }

  std::vector<int64_t> row_shape() const {
    return student.dim() == 3 ? std::vector<int64_t>{groups, rows_a_group} : std::vector<int64_t>{rows_a_group};
  }

  // Between the groups of a tensor of a number a row: (N,) is shared by them.
  int64_t group_stride(const std::optional<Tensor>& tensor) const {
    return tensor && tensor->dim() == 2 ? rows_a_group : 0;
  }

 private:
  void check() {
    STD_TORCH_CHECK(
        student.dim() == 2 || student.dim() == 3, "student: expected shape (N, C) or (G, N, C), got ",
        shape_of(student));
    check_float("student", student);
    check_float("teacher", teacher);
    check_device("teacher", teacher, student);
    student = with_unit_stride(student);
    teacher = with_unit_stride(teacher);
    groups = student.dim() == 3 ? student.size(0) : 1;
    rows_a_group = student.size(-2);
    classes = student.size(-1);
    STD_TORCH_CHECK(
        classes > 0 && classes <= kMostClasses, "student: expected 1 to ", kMostClasses, " classes, got ",
        shape_of(student));
    const int64_t tail[] = {rows_a_group, classes};
    check_shape("teacher", teacher, groups, tail, 2);
    const bool wide = student.scalar_type() == ScalarType::Double || teacher.scalar_type() == ScalarType::Double;
    accumulate = wide ? ScalarType::Double : ScalarType::Float;
    check_rows("row_temperature", row_temperature, accumulate, -1);
    check_rows("labels", labels, ScalarType::Long, groups);
    check_rows("row_weights", row_weights, accumulate, groups);
    STD_TORCH_CHECK(labels || options.ce_weight == 0, "labels: expected a tensor, as ce_weight is not 0");
  }

  void check_rows(const char* name, std::optional<Tensor>& tensor, ScalarType type, int64_t most_groups) {
    if (tensor) {
      check_dtype(name, *tensor, type);
      check_shape(name, *tensor, most_groups, &rows_a_group, 1);
      check_device(name, *tensor, student);
      tensor = torch::stable::contiguous(*tensor);
    }
  }
};

struct ForwardArguments {
  Arguments arguments;
  Reduction reduction;
  Save save;

  template <class Reader>
  explicit ForwardArguments(Reader& from)
      : arguments(from),
        reduction(checked("reduction", from.integer(), {Reduction::none, Reduction::sum, Reduction::batchmean})) {
    const int64_t number = from.integer();
    save = static_cast<Save>(number);
    STD_TORCH_CHECK(
        number >= 0 && number <= 2 && !(save == Save::gradient && reduction == Reduction::none),
        "save: expected 0, 1, or 2 with a reduction to a scalar, got ", number);
  }

  // Whether the divisor is the number of rows that their labels keep.
  bool counts_kept() const { return reduction == Reduction::batchmean && arguments.labels; }
};

struct BackwardArguments {
  Tensor grad, divisor, saved;
  Arguments arguments;
  bool student_grad, teacher_grad;  // whether it is wanted

  template <class Reader>
  explicit BackwardArguments(Reader& from)
      : grad(from.tensor()),
        divisor(from.tensor()),
        saved(from.tensor()),
        arguments(from),
        student_grad(from.flag()),
        teacher_grad(from.flag()) {
    for (const auto& [name, tensor] : {std::pair{"grad", grad}, {"divisor", divisor}, {"saved", saved}}) {
      check_dtype(name, tensor, arguments.accumulate);
      check_device(name, tensor, arguments.student);
    }
    STD_TORCH_CHECK(divisor.dim() == 0, "divisor: expected a scalar, got ", shape_of(divisor));
    STD_TORCH_CHECK(
        saved.dim() == 2 && saved.size(0) == arguments.rows() && saved.size(1) == kStats && saved.is_contiguous(),
        "saved: expected shape (", arguments.rows(), ", ", kStats, "), got ", shape_of(saved));
    STD_TORCH_CHECK(
        grad.dim() == 0 || grad.numel() == arguments.rows(), "grad: expected a scalar or a number a row, got ",
        shape_of(grad));
    grad = torch::stable::contiguous(grad);
  }
};

}  // namespace merc::kd_divergence

// The rows of a call and where their results go, as the arithmetic sees them: memory instead of tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "../arguments.h"

namespace merc::kd_divergence::cpu {

// Logits (G, N, C) with a unit last stride, or (N, C) shared by the groups.
struct Logits {
  const void* data;
  ScalarType type;
  int64_t rows_a_group, group_stride, row_stride, classes;
  bool shared;

  explicit Logits(const Tensor& tensor)
      : data(tensor.const_data_ptr()),
        type(tensor.scalar_type()),
        rows_a_group(tensor.size(-2)),
        group_stride(tensor.dim() == 3 ? tensor.stride(0) : 0),
        row_stride(tensor.stride(-2)),
        classes(tensor.size(-1)),
        shared(tensor.dim() == 2) {}

  int64_t row_offset(int64_t row) const {
    return (row / rows_a_group) * group_stride + (row % rows_a_group) * row_stride;
  }
};

// Where a gradient goes: contiguous, or nowhere.
struct Gradient {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;
};

// What the backward pass needs of a row beside its logits. The means are K of js, A / Z_x else (wide.h).
template <class A>
struct RowStats {
  A max_student, max_teacher, z_student, z_teacher, mean_student, mean_teacher, z_raw;
};
static_assert(sizeof(RowStats<float>) == kStats * sizeof(float));

// (N,) shared by the groups, or (G, N).
template <class T>
struct PerRow {
  const T* data = nullptr;
  int64_t group_stride = 0;
};

struct Rows {
  Logits student, teacher;
  Options<double> options;
  int64_t groups, rows_a_group, classes;
  const void* temperatures;  // (N,) of the accumulation type, or null
  PerRow<int64_t> labels;
  PerRow<void> weights;  // of the accumulation type
  bool wide_numbers;     // the accumulation type is float64
  double divisor = 1;
  Save save = Save::nothing;
  void* losses = nullptr;
  void* stats = nullptr;
  const void* grad = nullptr;
  bool grad_is_scalar = true;
  Gradient grad_student, grad_teacher;

  explicit Rows(const Arguments& arguments)
      : student(arguments.student),
        teacher(arguments.teacher),
        options(arguments.options),
        groups(arguments.groups),
        rows_a_group(arguments.rows_a_group),
        classes(arguments.classes),
        temperatures(data_of<void>(arguments.row_temperature)),
        labels{data_of<int64_t>(arguments.labels), arguments.group_stride(arguments.labels)},
        weights{data_of<void>(arguments.row_weights), arguments.group_stride(arguments.row_weights)},
        wide_numbers(arguments.accumulate == ScalarType::Double) {}

  int64_t label_of(int64_t row) const {
    return labels.data[row / rows_a_group * labels.group_stride + row % rows_a_group];
  }
  bool kept(int64_t row) const {
    if (labels.data == nullptr) {
      return true;
    }
    const int64_t label = label_of(row);
    return label != options.ignore_index && label >= 0 && label < classes;
  }
  double number(const void* from, int64_t index) const {
    return wide_numbers ? static_cast<const double*>(from)[index] : static_cast<const float*>(from)[index];
  }
  double temperature_of(int64_t row) const {
    return temperatures ? number(temperatures, row % rows_a_group) : options.temperature;
  }
  double weight_of(int64_t row) const {
    return weights.data ? number(weights.data, row / rows_a_group * weights.group_stride + row % rows_a_group) : 1;
  }
};

}  // namespace merc::kd_divergence::cpu

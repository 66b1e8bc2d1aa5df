// A call of the divergence, checked, as the arithmetic on its rows sees it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "../../checks.h"

namespace merc::cpu {
namespace {

enum class Direction : int64_t { forward = 0, reverse = 1, js = 2 };
enum class Reduction : int64_t { none = 0, sum = 1, batchmean = 3 };
enum class Save : int64_t { nothing = 0, numbers = 1, gradient = 2 };

// Logits (G, N, C) with a unit last stride, or (N, C) shared by the groups.
struct Logits {
  const void* data;
  ScalarType type;
  int64_t rows_a_group, group_stride, row_stride, classes;
  bool shared;

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
struct Row {
  A max_student, max_teacher, z_student, z_teacher, mean_student, mean_teacher, z_raw;
};

constexpr int64_t kNumbers = sizeof(Row<float>) / sizeof(float);

// (N,) shared by the groups, or (G, N).
template <class T>
struct PerRow {
  const T* data = nullptr;
  int64_t group_stride = 0;
};

struct Problem {
  Logits student, teacher;
  int64_t groups, rows_a_group, classes;
  const void* temperatures;  // (N,) of the accumulation type, or null
  PerRow<int64_t> labels;
  PerRow<void> weights;  // of the accumulation type
  bool wide_numbers;     // the accumulation type is float64
  double temperature, beta, ce_weight, divisor;
  bool scale_by_t2;
  int64_t ignore_index;
  Direction direction;
  Save save = Save::nothing;
  void* losses = nullptr;
  void* rows = nullptr;
  const void* grad = nullptr;
  bool grad_is_scalar = true;
  Gradient student_gradient, teacher_gradient;

  int64_t label_of(int64_t row) const {
    return labels.data[row / rows_a_group * labels.group_stride + row % rows_a_group];
  }
  bool kept(int64_t row) const {
    if (labels.data == nullptr) {
      return true;
    }
    const int64_t label = label_of(row);
    return label != ignore_index && label >= 0 && label < classes;
  }
  double number(const void* from, int64_t index) const {
    return wide_numbers ? static_cast<const double*>(from)[index] : static_cast<const float*>(from)[index];
  }
  double temperature_of(int64_t row) const {
    return temperatures ? number(temperatures, row % rows_a_group) : temperature;
  }
  double weight_of(int64_t row) const {
    return weights.data ? number(weights.data, row / rows_a_group * weights.group_stride + row % rows_a_group) : 1;
  }
};

}  // namespace
}  // namespace merc::cpu

// The schema of every operator. Kernels are registered where they are written: cpu/, cuda/.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(merc, m) {
  // save: 0 nothing; 1 seven numbers a row for kd_divergence_backward; 2 the student's gradient for a gradient of 1.
  // divisor is what the reduction divided by. direction: 0 forward, 1 reverse, 2 js. reduction: 0 none, 1 sum, 2 batchmean.
  m.def(
      "kd_divergence(Tensor student, Tensor teacher, Tensor? row_temperature, Tensor? labels, Tensor? row_weights, "
      "float temperature, int direction, float beta, float ce_weight, bool scale_by_t2, int ignore_index, "
      "int reduction, int save) -> (Tensor loss, Tensor divisor, Tensor saved)");
  m.def(
      "kd_divergence_backward(Tensor grad, Tensor divisor, Tensor saved, Tensor student, Tensor teacher, "
      "Tensor? row_temperature, Tensor? labels, Tensor? row_weights, float temperature, int direction, float beta, "
      "float ce_weight, bool scale_by_t2, int ignore_index, bool student_grad, bool teacher_grad) "
      "-> (Tensor student_grad, Tensor teacher_grad)");
}

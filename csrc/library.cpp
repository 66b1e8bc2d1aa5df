// The schema of every operator. Kernels are registered where they are written: cpu/, cuda/.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(merc, m) {
  // The enumerations are those of reduction.h and kd_divergence/options.h. save: nothing; seven numbers a row for
  // kd_divergence_backward; or the student's gradient for a gradient of 1. divisor is what the reduction divided by.
  m.def(
      "kd_divergence(Tensor student, Tensor teacher, Tensor? row_temperature, Tensor? labels, Tensor? row_weights, "
      "float temperature, int direction, float beta, float ce_weight, bool scale_by_t2, int ignore_index, "
      "int reduction, int save) -> (Tensor loss, Tensor divisor, Tensor saved)");
  m.def(
      "kd_divergence_backward(Tensor grad, Tensor divisor, Tensor saved, Tensor student, Tensor teacher, "
      "Tensor? row_temperature, Tensor? labels, Tensor? row_weights, float temperature, int direction, float beta, "
      "float ce_weight, bool scale_by_t2, int ignore_index, bool student_grad, bool teacher_grad) "
      "-> (Tensor student_grad, Tensor teacher_grad)");

  // Per group the rows stand as embeddings, prototypes, refs: z are the unit rows, norms their lengths, stats (G, T, 4)
  // m, G, a and L - m (focal_contrastive/cpu/operator.cpp), index what else a backend keeps of a row for its backward
  // pass; divisor is what the reduction divided by. all_anchors: prototypes and refs are anchors too, where stats has a
  // finite m.
  m.def(
      "focal_contrastive(Tensor embeddings, Tensor labels, Tensor? prototypes, Tensor? refs, Tensor? ref_labels, "
      "Tensor? class_weights, Tensor? temperature_tensor, float temperature, float gamma, int focal, "
      "bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize, int ignore_index, int reduction) "
      "-> (Tensor loss, Tensor divisor, Tensor z, Tensor norms, Tensor stats, Tensor index)");
  m.def(
      "focal_contrastive_backward(Tensor grad, Tensor divisor, Tensor z, Tensor norms, Tensor stats, Tensor index, "
      "Tensor embeddings, Tensor? prototypes, Tensor? refs, Tensor? temperature_tensor, float temperature, "
      "float gamma, int focal, bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize, "
      "int ignore_index, bool embeddings_grad, bool prototypes_grad, bool refs_grad, bool temperature_grad, "
      "bool all_anchors) "
      "-> (Tensor embeddings_grad, Tensor prototypes_grad, Tensor refs_grad, Tensor temperature_grad)");
  // The loss as one number and its gradients, in the type it is computed in: for small batches, on the CPU alone.
  m.def(
      "focal_contrastive_with_gradients(Tensor embeddings, Tensor labels, Tensor? prototypes, Tensor? refs, "
      "Tensor? ref_labels, Tensor? class_weights, Tensor? temperature_tensor, float temperature, float gamma, "
      "int focal, bool detach_focal, bool prototype_anchors, bool ref_only, bool normalize, int ignore_index, "
      "int reduction, bool embeddings_grad, bool prototypes_grad, bool refs_grad, bool temperature_grad) "
      "-> (Tensor loss, Tensor embeddings_grad, Tensor prototypes_grad, Tensor refs_grad, Tensor temperature_grad)");
}

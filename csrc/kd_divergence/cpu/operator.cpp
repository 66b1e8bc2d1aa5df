// Temperature-scaled divergence of a student from its teacher on the CPU: allocation, and the sum over the rows, which
// are computed each by itself (wide.h), or where classes are few many at once (narrow.h).
//
//   loss_r = weight_r (T^2 D(p, q) + ce_weight CE),  p = softmax(teacher / T),  q = softmax(student / T)
//
// with D one of KL(p|q), KL(q|p) and (1 - beta) KL(q|m) + beta KL(p|m), m = beta p + (1 - beta) q; to the student
//
//   T dD/ds = q - p;  q (log q - log p - KL(q|p));  (1 - beta) q (log q - log m - KL(q|m)).

#include "operator.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "../../cpu/allocate.h"
#include "../../stack.h"
#include "kernels.h"
#include "rows.h"

namespace merc::kd_divergence::cpu {
namespace {

using merc::cpu::empty;

template <class A>
A sum_in_order(const void* losses, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += static_cast<const A*>(losses)[i];
  }
  return static_cast<A>(sum);
}

Tensor scalar(ScalarType type, double value) {
  Tensor tensor = empty({}, type);
  with_accumulate(type, [&]<class A>(A) { *static_cast<A*>(tensor.mutable_data_ptr()) = static_cast<A>(value); });
  return tensor;
}

double divisor_of(const ForwardArguments& call, const Rows& rows) {
  if (call.reduction != Reduction::batchmean) {
    return 1;
  }
  int64_t kept = call.arguments.rows();
  if (call.counts_kept()) {
    kept = 0;
    for (int64_t row = 0; row < call.arguments.rows(); ++row) {
      kept += rows.kept(row);
    }
  }
  return kept > 1 ? static_cast<double>(kept) : 1;
}

Tensor empty_saved(const ForwardArguments& call) {
  const Arguments& arguments = call.arguments;
  switch (call.save) {
    case Save::nothing:
      return empty({0}, arguments.accumulate);
    case Save::stats:
      return empty({arguments.rows(), kStats}, arguments.accumulate);
    default:
      return empty(size_of(arguments.student), arguments.student.scalar_type());
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward(const ForwardArguments& call) {
  const Arguments& arguments = call.arguments;
  const ScalarType type = arguments.accumulate;
  Rows rows(arguments);
  rows.divisor = divisor_of(call, rows);
  rows.save = call.save;
  Tensor losses = empty(arguments.row_shape(), type), saved = empty_saved(call);
  rows.losses = losses.mutable_data_ptr();
  rows.stats = saved.mutable_data_ptr();
  rows.grad_student = {saved.mutable_data_ptr(), arguments.student.scalar_type()};
  run(rows, true);
  Tensor divisor = scalar(type, rows.divisor);
  if (call.reduction == Reduction::none) {
    return {losses, divisor, saved};
  }
  const double sum = rows.wide_numbers ? sum_in_order<double>(rows.losses, arguments.rows())
                                       : sum_in_order<float>(rows.losses, arguments.rows());
  return {scalar(type, sum / rows.divisor), divisor, saved};
}

namespace {

std::tuple<Tensor, Tensor> backward(const BackwardArguments& call) {
  const Arguments& arguments = call.arguments;
  Rows rows(arguments);
  rows.grad = call.grad.const_data_ptr();
  rows.grad_is_scalar = call.grad.dim() == 0;
  rows.stats = call.saved.mutable_data_ptr();
  rows.divisor = rows.number(call.divisor.const_data_ptr(), 0);
  const auto gradient = [](bool wanted, const Tensor& of, Gradient& target) {
    Tensor tensor = empty(wanted ? size_of(of) : std::vector<int64_t>{0}, of.scalar_type());
    if (wanted) {
      target = {tensor.mutable_data_ptr(), of.scalar_type()};
    }
    return tensor;
  };
  Tensor grad_student = gradient(call.student_grad, arguments.student, rows.grad_student);
  Tensor grad_teacher = gradient(call.teacher_grad, arguments.teacher, rows.grad_teacher);
  run(rows, false);
  return {grad_student, grad_teacher};
}

}  // namespace
}  // namespace merc::kd_divergence::cpu

STABLE_TORCH_LIBRARY_IMPL(merc, CPU, m) {
  namespace op = merc::kd_divergence;
  m.impl("kd_divergence", merc::boxed<op::ForwardArguments, op::cpu::forward>);
  m.impl("kd_divergence_backward", merc::boxed<op::BackwardArguments, op::cpu::backward>);
}

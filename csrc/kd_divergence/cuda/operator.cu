// Temperature-scaled divergence of a student from its teacher on the GPU: allocation and launches.
//
//   loss_r = weight_r (T^2 D(p, q) + ce_weight CE),  p = softmax(teacher / T),  q = softmax(student / T)
//
// with D one of KL(p|q), KL(q|p) and (1 - beta) KL(q|m) + beta KL(p|m), m = beta p + (1 - beta) q; to the student
//
//   T dD/ds = q - p;  q (log q - log p - KL(q|p));  (1 - beta) q (log q - log m - KL(q|m)).
//
// One launch each way: no atomics, no host synchronisation, offsets in 64 bits. A scalar of more than one block takes
// another, for the sum over the blocks. (Where the gradient is made in the forward pass, over a number of kept rows that
// only the device knows, a launch before it counts them.)

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "../../cuda/launch.cuh"
#include "../../stack.h"
#include "narrow.cuh"
#include "rows.cuh"
#include "wide.cuh"

namespace merc::kd_divergence::cuda {
namespace {

constexpr int64_t kMostBlocks = 4096;      // of a launch that ends in a sum over its blocks
constexpr int64_t kMostGrid = 0x7fffffff;  // of any other

template <class A, bool gradient>
auto wide_forward_of(Direction direction) {
  return direction == Direction::forward   ? wide_forward<A, Direction::forward, gradient>
         : direction == Direction::reverse ? wide_forward<A, Direction::reverse, gradient>
                                           : wide_forward<A, Direction::js, gradient>;
}

template <class A, bool summed>
auto wide_backward_of(Direction direction) {
  return direction == Direction::forward   ? wide_backward<A, Direction::forward, summed>
         : direction == Direction::reverse ? wide_backward<A, Direction::reverse, summed>
                                           : wide_backward<A, Direction::js, summed>;
}

int64_t blocks_for(int64_t rows, int64_t rows_a_block, int64_t most) {
  return std::clamp<int64_t>((rows + rows_a_block - 1) / rows_a_block, 1, most);
}

// Threads that share a row of many classes, a power of two: each has some units of its own.
int threads_a_row(int classes, int most) {
  int threads = kWarp;
  while (threads < most && threads * 32 < classes) {
    threads *= 2;
  }
  return threads;
}

// Where a row belongs to a warp, four rows a block.
dim3 wide_block(int threads) { return dim3(threads, threads == kWarp ? 4 : 1); }

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

template <class A>
Outputs forward(const ForwardArguments& call) {
  const Arguments& arguments = call.arguments;
  const Place place(arguments.student);
  const ScalarType type = arguments.accumulate;
  const Rows<A> rows(arguments);
  const int64_t count = arguments.rows();
  const bool none = call.reduction == Reduction::none, makes_gradient = call.save == Save::gradient;
  Tensor loss = place.empty(none ? arguments.row_shape() : std::vector<int64_t>{}, type);
  Tensor divisor = place.empty({}, type);
  Tensor saved = makes_gradient             ? place.empty(size_of(arguments.student), arguments.student.scalar_type())
                 : call.save == Save::stats ? place.empty({count, kStats}, type)
                                            : place.empty({0}, type);

  const bool narrow = rows.classes <= kNarrow;
  const dim3 block = narrow ? dim3(kNarrowThreads) : wide_block(threads_a_row(rows.classes, kWideThreads));
  const int64_t rows_a_block = narrow ? rows_a_tile<A>(rows.classes) : block.y;
  const int64_t blocks = blocks_for(count, rows_a_block, none ? kMostGrid : kMostBlocks);
  const bool partial = !none && blocks > 1;
  const Tensor partials = place.empty({partial ? blocks * 2 : 0}, ScalarType::Double);

  ForwardTargets<A> to{};
  to.losses = none ? static_cast<A*>(loss.mutable_data_ptr()) : nullptr;
  to.loss = static_cast<A*>(loss.mutable_data_ptr());
  to.divisor = static_cast<A*>(divisor.mutable_data_ptr());
  to.stats = call.save == Save::stats ? static_cast<RowStats<A>*>(saved.mutable_data_ptr()) : nullptr;
  to.gradient = makes_gradient ? static_cast<char*>(saved.mutable_data_ptr()) : nullptr;
  to.fixed_divisor = call.counts_kept()                       ? A(0)
                     : call.reduction == Reduction::batchmean ? static_cast<A>(std::max<int64_t>(count, 1))
                                                              : A(1);
  to.counted = to.divisor;
  to.partials = partial ? static_cast<Total*>(partials.mutable_data_ptr()) : nullptr;
  if (call.counts_kept() && makes_gradient) {
    launch(count_kept<A>, dim3(1), dim3(kCountThreads), place, rows, to.divisor);
  }
  const auto kernel = narrow           ? narrow_forward<A>
                      : makes_gradient ? wide_forward_of<A, true>(rows.options.direction)
                                       : wide_forward_of<A, false>(rows.options.direction);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), block, place, rows, to);
  if (partial) {
    launch(add_blocks<A>, dim3(1), dim3(kSumThreads), place, to, static_cast<int>(blocks));
  }
  return {loss, divisor, saved};
}

Outputs forward_operator(const ForwardArguments& call) {
  return with_accumulate(call.arguments.accumulate, [&]<class A>(A) { return forward<A>(call); });
}

template <class A>
std::tuple<Tensor, Tensor> backward(const BackwardArguments& call) {
  const Arguments& arguments = call.arguments;
  const Place place(arguments.student);
  const auto gradient = [&](bool wanted, const Tensor& of) {
    return place.empty(wanted ? size_of(of) : std::vector<int64_t>{0}, of.scalar_type());
  };
  Tensor grad_student = gradient(call.student_grad, arguments.student);
  Tensor grad_teacher = gradient(call.teacher_grad, arguments.teacher);
  const bool summed = call.teacher_grad && arguments.student.dim() == 3 && arguments.teacher.dim() == 2;
  BackwardTargets<A> to{};
  to.grad = static_cast<const A*>(call.grad.const_data_ptr());
  to.grad_is_scalar = call.grad.dim() == 0;
  to.divisor = static_cast<const A*>(call.divisor.const_data_ptr());
  to.stats = static_cast<const RowStats<A>*>(call.saved.const_data_ptr());
  to.student = call.student_grad ? static_cast<char*>(grad_student.mutable_data_ptr()) : nullptr;
  to.teacher = call.teacher_grad ? static_cast<char*>(grad_teacher.mutable_data_ptr()) : nullptr;
  to.student_type = type_of(arguments.student);
  to.teacher_type = type_of(arguments.teacher);
  to.loops = summed ? arguments.groups : 1;
  to.rows = summed ? arguments.rows_a_group : arguments.rows();
  if (to.rows == 0 || (!to.student && !to.teacher)) {
    return {grad_student, grad_teacher};
  }
  const Rows<A> rows(arguments);
  if (rows.classes <= kNarrow) {
    const int64_t blocks = blocks_for(to.rows, rows_a_tile<A>(rows.classes), kMostGrid);
    launch(narrow_backward<A>, dim3(static_cast<unsigned>(blocks)), dim3(kNarrowThreads), place, rows, to);
    return {grad_student, grad_teacher};
  }
  const dim3 block = wide_block(threads_a_row(rows.classes, kWideThreads));
  const int64_t blocks = blocks_for(to.rows, block.y, kMostGrid);
  // Few rows are cut, as long as each thread keeps two units.
  const int64_t enough = 4 * int64_t{place.multiprocessors()} / blocks;
  const int64_t slices =
      std::clamp<int64_t>(std::min(enough, rows.classes / (2 * kUnit<A> * int64_t{block.x})), 1, 1024);
  const auto kernel =
      summed ? wide_backward_of<A, true>(rows.options.direction) : wide_backward_of<A, false>(rows.options.direction);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(slices));
  launch(kernel, grid, block, place, rows, to);
  return {grad_student, grad_teacher};
}

std::tuple<Tensor, Tensor> backward_operator(const BackwardArguments& call) {
  return with_accumulate(call.arguments.accumulate, [&]<class A>(A) { return backward<A>(call); });
}

}  // namespace
}  // namespace merc::kd_divergence::cuda

STABLE_TORCH_LIBRARY_IMPL(merc, CUDA, m) {
  namespace op = merc::kd_divergence;
  m.impl("kd_divergence", merc::boxed<op::ForwardArguments, op::cuda::forward_operator>);
  m.impl("kd_divergence_backward", merc::boxed<op::BackwardArguments, op::cuda::backward_operator>);
}

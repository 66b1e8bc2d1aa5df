// Temperature-scaled divergence of a student from its teacher on the GPU: checks, allocation, launches.
//
//   loss_r = weight_r (T^2 D(p, q) + ce_weight CE),  p = softmax(teacher / T),  q = softmax(student / T)
//
// with D one of KL(p|q), KL(q|p) and (1 - beta) KL(q|m) + beta KL(p|m), m = beta p + (1 - beta) q; to the student
//
//   T dD/ds = q - p;  q (log q - log p - KL(q|p));  (1 - beta) q (log q - log m - KL(q|m)).
//
// One launch each way: no atomics on values, no host synchronisation, offsets in 64 bits. (Where the gradient is made
// in the forward pass, over a number of kept rows that only the device knows, a launch before it counts them.)

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../../checks.h"
#include "narrow.cuh"
#include "rows.cuh"
#include "wide.cuh"
#include "../../cuda/launch.cuh"
#include "../../cuda/tensors.cuh"

namespace merc::cuda {
namespace {

constexpr int64_t kMostBlocks = 4096;      // of a launch that ends in a sum over its blocks
constexpr int64_t kMostGrid = 0x7fffffff;  // of any other

constexpr int64_t kMostClasses = 1 << 30;  // columns of a row are counted in 32 bits

enum Reduction : int64_t { kNone = 0, kSum = 1, kBatchmean = 3 };
enum Save : int64_t { kNothing = 0, kSaveNumbers = 1, kGradient = 2 };

Logits logits_of(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), type_of(tensor), tensor.dim() == 3 ? tensor.stride(0) : 0,
          tensor.stride(-2)};
}

// The tensors of a call, checked, kept alive, with a unit last stride.
struct Arguments {
  Tensor student, teacher;
  Place place;
  std::optional<Tensor> temperatures, labels, weights;
  double temperature, beta, ce_weight;
  bool scale_by_t2;
  int64_t ignore_index, direction, groups, rows_a_group;
  int classes;
  ScalarType accumulate;

  Arguments(
      const Tensor& student_, const Tensor& teacher_, const std::optional<Tensor>& temperatures_,
      const std::optional<Tensor>& labels_, const std::optional<Tensor>& weights_, double temperature_,
      int64_t direction_, double beta_, double ce_weight_, bool scale_by_t2_, int64_t ignore_index_)
      : student(with_unit_stride(student_)),
        teacher(with_unit_stride(teacher_)),
        place(student),
        temperature(temperature_),
        beta(beta_),
        ce_weight(ce_weight_),
        scale_by_t2(scale_by_t2_),
        ignore_index(ignore_index_),
        direction(direction_) {
    STD_TORCH_CHECK(
        student.dim() == 2 || student.dim() == 3, "student: expected shape (N, C) or (G, N, C), got ",
        shape_of(student));
    STD_TORCH_CHECK(direction >= 0 && direction <= 2, "direction: expected 0, 1 or 2, got ", direction);
    check_float("student", student);
    check_float("teacher", teacher);
    groups = student.dim() == 3 ? student.size(0) : 1;
    rows_a_group = student.size(-2);
    const int64_t tail[] = {rows_a_group, student.size(-1)};
    STD_TORCH_CHECK(
        tail[1] > 0 && tail[1] <= kMostClasses, "student: expected 1 to ", kMostClasses, " classes, got ",
        shape_of(student));
    classes = static_cast<int>(tail[1]);
    check_shape("teacher", teacher, groups, tail, 2);
    place.check_here("teacher", teacher);
    const bool wide = student.scalar_type() == ScalarType::Double || teacher.scalar_type() == ScalarType::Double;
    accumulate = wide ? ScalarType::Double : ScalarType::Float;
    const auto take = [&](const char* name, const std::optional<Tensor>& tensor, ScalarType type, int64_t most_groups) {
      std::optional<Tensor> taken;
      if (tensor) {
        check_dtype(name, *tensor, type);
        check_shape(name, *tensor, most_groups, tail, 1);
        place.check_here(name, *tensor);
        taken = torch::stable::contiguous(*tensor);
      }
      return taken;
    };
    temperatures = take("row_temperature", temperatures_, accumulate, -1);
    labels = take("labels", labels_, ScalarType::Long, groups);
    weights = take("row_weights", weights_, accumulate, groups);
    STD_TORCH_CHECK(labels || ce_weight == 0, "labels: expected a tensor, as ce_weight is not 0");
  }

  int64_t rows() const { return groups * rows_a_group; }

  std::vector<int64_t> row_shape() const {
    return student.dim() == 3 ? std::vector<int64_t>{groups, rows_a_group} : std::vector<int64_t>{rows_a_group};
  }

  template <class A>
  Problem<A> problem() const {
    const auto data = [](const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; };
    const auto stride = [&](const std::optional<Tensor>& tensor) {
      return tensor && tensor->dim() == 2 ? rows_a_group : 0;
    };
    return {logits_of(student),
            logits_of(teacher),
            groups,
            rows_a_group,
            classes,
            static_cast<const A*>(data(temperatures)),
            static_cast<const int64_t*>(data(labels)),
            stride(labels),
            static_cast<const A*>(data(weights)),
            stride(weights),
            static_cast<A>(temperature),
            static_cast<A>(beta),
            static_cast<A>(ce_weight),
            scale_by_t2,
            ignore_index,
            static_cast<Direction>(direction)};
  }
};

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
dim3 wide_block(int threads) {
  return dim3(threads, threads == kWarp ? 4 : 1);
}

template <class A>
std::tuple<Tensor, Tensor, Tensor> forward(const Arguments& arguments, int64_t reduction, int64_t save) {
  const Place& place = arguments.place;
  const ScalarType type = arguments.accumulate;
  const Problem<A> problem = arguments.problem<A>();
  const int64_t rows = arguments.rows();
  const bool none = reduction == kNone;
  const bool counting = reduction == kBatchmean && arguments.labels;
  Tensor loss = place.empty(none ? arguments.row_shape() : std::vector<int64_t>{}, type);
  Tensor divisor = place.empty({}, type);
  Tensor saved = save == kGradient      ? place.empty(size_of(arguments.student), arguments.student.scalar_type())
                 : save == kSaveNumbers ? place.empty({rows, kNumbers}, type)
                                        : place.empty({0}, type);

  const bool narrow = arguments.classes <= kNarrow;
  const dim3 block =
      narrow ? dim3(kNarrowThreads) : wide_block(threads_a_row(arguments.classes, kWideThreads));
  const int64_t rows_a_block = narrow ? rows_a_tile<A>(arguments.classes) : block.y;
  const int64_t blocks = blocks_for(rows, rows_a_block, none ? kMostGrid : kMostBlocks);
  const Tensor partials = place.empty({!none && blocks > 1 ? blocks * 2 : 0}, ScalarType::Double);

  ForwardTargets<A> to{};
  to.losses = none ? static_cast<A*>(loss.mutable_data_ptr()) : nullptr;
  to.loss = static_cast<A*>(loss.mutable_data_ptr());
  to.divisor = static_cast<A*>(divisor.mutable_data_ptr());
  to.numbers = save == kSaveNumbers ? static_cast<Numbers<A>*>(saved.mutable_data_ptr()) : nullptr;
  to.gradient = save == kGradient ? static_cast<char*>(saved.mutable_data_ptr()) : nullptr;
  to.fixed_divisor = counting ? A(0) : reduction == kBatchmean ? static_cast<A>(std::max<int64_t>(rows, 1)) : A(1);
  to.counted = to.divisor;
  to.partials = static_cast<Total*>(partials.mutable_data_ptr());
  to.ticket = !none && blocks > 1 ? take_ticket(place) : 0;
  if (counting && save == kGradient) {
    launch(count_kept<A>, dim3(1), dim3(kCountThreads), place, problem, to.divisor);
  }
  const auto kernel = narrow              ? narrow_forward<A>
                      : save == kGradient ? wide_forward_of<A, true>(problem.direction)
                                          : wide_forward_of<A, false>(problem.direction);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), block, place, problem, to);
  return {loss, divisor, saved};
}

std::tuple<Tensor, Tensor, Tensor> kd_divergence(
    const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& row_temperature,
    const std::optional<Tensor>& labels, const std::optional<Tensor>& row_weights, double temperature,
    int64_t direction, double beta, double ce_weight, bool scale_by_t2, int64_t ignore_index, int64_t reduction,
    int64_t save) {
  const Arguments arguments(
      student, teacher, row_temperature, labels, row_weights, temperature, direction, beta, ce_weight, scale_by_t2,
      ignore_index);
  STD_TORCH_CHECK(
      reduction == kNone || reduction == kSum || reduction == kBatchmean, "reduction: expected 0, 1 or 3, got ",
      reduction);
  STD_TORCH_CHECK(
      save >= 0 && save <= 2 && !(save == kGradient && reduction == kNone),
      "save: expected 0, 1, or 2 with a reduction to a scalar, got ", save);
  return arguments.accumulate == ScalarType::Double ? forward<double>(arguments, reduction, save)
                                                    : forward<float>(arguments, reduction, save);
}

template <class A>
void backward(
    const Arguments& arguments, const Tensor& grad, const Tensor& divisor, const Tensor& saved, const Tensor* student,
    const Tensor* teacher) {
  const Place& place = arguments.place;
  const bool summed = teacher && arguments.student.dim() == 3 && arguments.teacher.dim() == 2;
  BackwardTargets<A> to{};
  to.grad = static_cast<const A*>(grad.const_data_ptr());
  to.grad_is_scalar = grad.dim() == 0;
  to.divisor = static_cast<const A*>(divisor.const_data_ptr());
  to.numbers = static_cast<const Numbers<A>*>(saved.const_data_ptr());
  to.student = student ? static_cast<char*>(student->mutable_data_ptr()) : nullptr;
  to.teacher = teacher ? static_cast<char*>(teacher->mutable_data_ptr()) : nullptr;
  to.student_type = type_of(arguments.student);
  to.teacher_type = type_of(arguments.teacher);
  to.loops = summed ? arguments.groups : 1;
  to.rows = summed ? arguments.rows_a_group : arguments.rows();
  if (to.rows == 0 || (!student && !teacher)) {
    return;
  }
  const Problem<A> problem = arguments.problem<A>();
  if (arguments.classes <= kNarrow) {
    const int64_t blocks = blocks_for(to.rows, rows_a_tile<A>(arguments.classes), kMostGrid);
    launch(
        narrow_backward<A>, dim3(static_cast<unsigned>(blocks)), dim3(kNarrowThreads), place, problem, to);
    return;
  }
  const dim3 block = wide_block(threads_a_row(arguments.classes, kWideThreads));
  const int64_t blocks = blocks_for(to.rows, block.y, kMostGrid);
  // Few rows are cut, as long as each thread keeps two units.
  const int64_t enough = 4 * int64_t{place.multiprocessors()} / blocks;
  const int64_t slices = std::clamp<int64_t>(
      std::min(enough, arguments.classes / (2 * kUnit<A> * int64_t{block.x})), 1, 1024);
  launch(
      summed ? wide_backward_of<A, true>(problem.direction) : wide_backward_of<A, false>(problem.direction), dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(slices)), block, place,
      problem, to);
}

std::tuple<Tensor, Tensor> kd_divergence_backward(
    const Tensor& grad, const Tensor& divisor, const Tensor& saved, const Tensor& student, const Tensor& teacher,
    const std::optional<Tensor>& row_temperature, const std::optional<Tensor>& labels,
    const std::optional<Tensor>& row_weights, double temperature, int64_t direction, double beta, double ce_weight,
    bool scale_by_t2, int64_t ignore_index, bool student_grad, bool teacher_grad) {
  const Arguments arguments(
      student, teacher, row_temperature, labels, row_weights, temperature, direction, beta, ce_weight, scale_by_t2,
      ignore_index);
  const Place& place = arguments.place;
  const ScalarType type = arguments.accumulate;
  check_dtype("grad", grad, type);
  check_dtype("divisor", divisor, type);
  check_dtype("saved", saved, type);
  place.check_here("grad", grad);
  place.check_here("divisor", divisor);
  place.check_here("saved", saved);
  STD_TORCH_CHECK(divisor.dim() == 0, "divisor: expected a scalar, got ", shape_of(divisor));
  STD_TORCH_CHECK(
      saved.dim() == 2 && saved.size(0) == arguments.rows() && saved.size(1) == kNumbers && saved.is_contiguous(),
      "saved: expected shape (", arguments.rows(), ", ", kNumbers, "), got ", shape_of(saved));
  STD_TORCH_CHECK(
      grad.dim() == 0 || grad.numel() == arguments.rows(), "grad: expected a scalar or a number a row, got ",
      shape_of(grad));
  const Tensor grads = torch::stable::contiguous(grad);
  const auto gradient = [&](bool wanted, const Tensor& of) {
    return place.empty(wanted ? size_of(of) : std::vector<int64_t>{0}, of.scalar_type());
  };
  Tensor of_student = gradient(student_grad, arguments.student);
  Tensor of_teacher = gradient(teacher_grad, arguments.teacher);
  const auto run = type == ScalarType::Double ? backward<double> : backward<float>;
  run(arguments, grads, divisor, saved, student_grad ? &of_student : nullptr, teacher_grad ? &of_teacher : nullptr);
  return {of_student, of_teacher};
}

}  // namespace
}  // namespace merc::cuda

STABLE_TORCH_LIBRARY_IMPL(merc, CUDA, m) {
  m.impl("kd_divergence", TORCH_BOX(&merc::cuda::kd_divergence));
  m.impl("kd_divergence_backward", TORCH_BOX(&merc::cuda::kd_divergence_backward));
}

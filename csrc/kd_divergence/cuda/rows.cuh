// What the kernels of the divergence are given, and what they share: a row's parameters, and the end of a launch.
#pragma once

#include <cstdint>

#include "../../cuda/elements.cuh"
#include "../../cuda/reduce.cuh"
#include "../arguments.h"
#include "logits.cuh"
#include "row_math.cuh"

namespace merc::kd_divergence::cuda {

// (N, C) is shared by the groups, which then lie 0 apart.
inline Logits logits_of(const Tensor& tensor) {
  return {
      static_cast<const char*>(tensor.const_data_ptr()), type_of(tensor), tensor.dim() == 3 ? tensor.stride(0) : 0,
      tensor.stride(-2)};
}

template <class A>
struct Rows {
  Logits student, teacher;
  Options<A> options;
  int64_t groups, rows_a_group;
  int classes;
  const A* temperatures;  // (N,), or null
  const int64_t* labels;  // (N,) shared by the groups, which then lie 0 apart, or (G, N); or null
  int64_t labels_group_stride;
  const A* weights;  // likewise
  int64_t weights_group_stride;

  explicit Rows(const Arguments& arguments)
      : student(logits_of(arguments.student)),
        teacher(logits_of(arguments.teacher)),
        options(arguments.options.in<A>()),
        groups(arguments.groups),
        rows_a_group(arguments.rows_a_group),
        classes(static_cast<int>(arguments.classes)),
        temperatures(data_of<A>(arguments.row_temperature)),
        labels(data_of<int64_t>(arguments.labels)),
        labels_group_stride(arguments.group_stride(arguments.labels)),
        weights(data_of<A>(arguments.row_weights)),
        weights_group_stride(arguments.group_stride(arguments.row_weights)) {}

  __device__ int64_t rows() const { return groups * rows_a_group; }
};

template <class A>
struct ForwardTargets {
  A* losses;           // (rows,), or null: a scalar is wanted
  A* loss;             // the scalar
  A* divisor;          // what the scalar was divided by
  RowStats<A>* stats;  // (rows,), or null
  char* gradient;      // of the student, contiguous, for a gradient of 1; or null
  A fixed_divisor;     // 0: the number of kept rows, which `counted` holds already where there is a gradient
  const A* counted;
  Total* partials;  // a block each, for `add_blocks`; or null: there is one block
};

template <class A>
struct BackwardTargets {
  const A* grad;  // one, or one a row
  bool grad_is_scalar;
  const A* divisor;
  const RowStats<A>* stats;
  char *student, *teacher;  // contiguous gradients, or null
  Type student_type, teacher_type;
  // A teacher that the groups share gets the sum over them: its row belongs to one thread block, which takes the
  // `loops` rows that lie `rows` apart. Otherwise loops is 1 and rows all there are.
  int64_t loops, rows;
};

// Where a row lies and what belongs to it. Where it does not count, `kept` is false, and nothing that is read of it
// reaches a result.
template <class A>
struct RowInfo {
  int64_t row, group, index;
  int label;
  A temperature, weight;
  bool kept;

  __device__ RowInfo(const Rows<A>& p, int64_t row_)
      : row(row_), group(p.groups == 1 ? 0 : divide(row_, p.rows_a_group)), index(row_ - group * p.rows_a_group) {
    const int64_t named = p.labels ? p.labels[group * p.labels_group_stride + index] : 0;
    kept = !p.labels || (named != p.options.ignore_index && named >= 0 && named < p.classes);
    label = kept ? static_cast<int>(named) : -1;
    temperature = kept && p.temperatures ? p.temperatures[index] : p.options.temperature;
    weight = kept && p.weights ? p.weights[group * p.weights_group_stride + index] : A(1);
  }

  __device__ Row student(const Rows<A>& p) const { return of(p.student); }
  __device__ Row teacher(const Rows<A>& p) const { return of(p.teacher); }

  __device__ Slope<A> slope(const Rows<A>& p, Direction direction, const RowStats<A>& stats, A factor) const {
    return Slope<A>(
        stats, p.options, direction, temperature, factor * weight, p.options.ce_weight != A(0) ? label : -1);
  }

  // Of the gradient that reaches the row, over what the reduction divided by.
  __device__ A factor(const BackwardTargets<A>& to) const { return to.grad[to.grad_is_scalar ? 0 : row] / *to.divisor; }

  // The row's loss; `label_logit` is the student's, used where there is a cross entropy.
  __device__ A loss(const Rows<A>& p, const Slope<A>& slope, A label_logit) const {
    A loss = slope.divergence();
    loss = p.options.scale_by_t2 ? loss * temperature * temperature : loss;
    if (p.options.ce_weight != A(0)) {
      loss += p.options.ce_weight * slope.cross_entropy(label_logit);
    }
    return loss * weight;
  }

 private:
  __device__ Row of(const Logits& logits) const {
    return {logits.data + logits.offset(group, index) * bytes_of(logits.type), logits.type};
  }
};

template <class A>
__device__ __forceinline__ A forward_divisor(const ForwardTargets<A>& to) {
  return to.fixed_divisor != A(0) ? to.fixed_divisor : *to.counted;
}

// The scalar and its divisor.
template <class A>
__device__ __forceinline__ void put_total(const ForwardTargets<A>& to, const Total& total) {
  const double counted = total.kept > 1 ? total.kept : 1;
  const double divisor = to.fixed_divisor != A(0) ? static_cast<double>(to.fixed_divisor) : counted;
  *to.loss = static_cast<A>(total.loss / divisor);
  *to.divisor = static_cast<A>(divisor);
}

// Ends a forward launch, from every thread's own rows.
template <class A>
__device__ __forceinline__ void finish(const ForwardTargets<A>& to, Total mine) {
  if (to.losses) {
    if (blockIdx.x == 0 && threadIdx.x == 0 && threadIdx.y == 0) {
      *to.divisor = to.fixed_divisor;
    }
    return;
  }
  const Total total = block_total(mine);
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    if (to.partials) {
      to.partials[blockIdx.x] = total;
    } else {
      put_total(to, total);
    }
  }
}

// The sum over the blocks of a forward launch, in a launch of its own: a counter of blocks would have to be zeroed in
// one too, or outlive the call, where launches at the same time share it. One block.
constexpr int kSumThreads = 256;

template <class A>
__global__ void __launch_bounds__(kSumThreads) add_blocks(const __grid_constant__ ForwardTargets<A> to, int blocks) {
  Total mine{0, 0};
  for (int i = threadIdx.x; i < blocks; i += kSumThreads) {
    mine = mine + to.partials[i];
  }
  const Total total = block_total(mine);
  if (threadIdx.x == 0) {
    put_total(to, total);
  }
}

// The number of kept rows, at least 1: one block.
constexpr int kCountThreads = 512;

template <class A>
__global__ void __launch_bounds__(kCountThreads) count_kept(const Rows<A> p, A* divisor) {
  Total mine{0, 0};
  for (int64_t row = threadIdx.x; row < p.rows(); row += kCountThreads) {
    mine.kept += RowInfo<A>(p, row).kept ? 1 : 0;
  }
  const Total total = block_total(mine);
  if (threadIdx.x == 0) {
    *divisor = static_cast<A>(total.kept > 1 ? total.kept : 1);
  }
}

}  // namespace merc::kd_divergence::cuda

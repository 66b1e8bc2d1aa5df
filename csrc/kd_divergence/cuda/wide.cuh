// Rows of more than 64 classes: threadIdx.x walks one row, threadIdx.y numbers the rows of a block. A thread takes two
// units of neighbours of either tensor at a time, all loads before the first use. A second sweep over a row walks back,
// through what the cache still holds. Value and gradient are those of row_math.cuh.
#pragma once

#include <cstdint>

#include "rows.cuh"

namespace merc::kd_divergence::cuda {

constexpr int kWideThreads = 256;

// Blocks that a multiprocessor should hold, as far as that costs no spills: loads in flight are what counts.
template <class A>
constexpr int forward_blocks(Direction direction, bool gradient) {
  return sizeof(A) == 4 && !(direction == Direction::js && gradient) ? 2 : 1;
}

template <class A>
constexpr int kBackwardBlocks = sizeof(A) == 4 ? 2 : 1;

// The single columns and the units of one thread of `threads`.
template <class A>
struct Walk {
  Span<A> span;
  int thread, threads, steps;

  __device__ Walk(const void* aligned, Type type, int columns, int thread_, int threads_)
      : span(aligned, type, columns),
        thread(thread_),
        threads(threads_),
        steps(span.units > thread_ ? (span.units - thread_ - 1) / (2 * threads_) + 1 : 0) {}

  // f(number of a first unit, number of a second or -1).
  template <class F>
  __device__ __forceinline__ void units(bool back, const F& f) const {
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int first = thread + (back ? steps - 1 - step : step) * 2 * threads;
      f(first, first + threads < span.units ? first + threads : -1);
    }
  }

  // f(column), of the columns outside the units.
  template <class F>
  __device__ __forceinline__ void singles(const F& f) const {
#pragma unroll 1
    for (int i = thread; i < span.singles; i += threads) {
      f(span.single(i));
    }
  }
};

// f(column, values of the first row, of the second) of one unit or two, all loaded before the first f.
template <class A, class F>
__device__ __forceinline__ void with_values(
    const Row& first, const Row& second, const Span<A>& span, int unit, int other, const F& f) {
  Unit<A> a, b, next_a, next_b;
  a.load(first, span.unit(unit));
  b.load(second, span.unit(unit));
  if (other >= 0) {
    next_a.load(first, span.unit(other));
    next_b.load(second, span.unit(other));
  }
#pragma unroll 1  // one copy of f's code: fewer registers
  while (true) {
    A x[kUnit<A>], y[kUnit<A>];
    a.values(first, x);
    b.values(second, y);
    f(span.unit(unit), x, y);
    if (other < 0) {
      return;
    }
    a = next_a;
    b = next_b;
    unit = other;
    other = -1;
  }
}

template <int n, class A>
__device__ __forceinline__ void keep_or_zero(bool keep, A (&values)[n]) {
#pragma unroll
  for (A& value : values) {
    value = keep ? value : A(0);
  }
}

template <Direction direction, class A>
__device__ __forceinline__ RowStats<A> measure(const Rows<A>& p, const RowInfo<A>& row) {
  __shared__ Maxima<A> shared_maxima[kWarp];
  __shared__ PairSums<A> shared_sums[kWarp];
  __shared__ Pair<A> shared_pairs[kWarp];
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const bool student_is_x = direction != Direction::forward;
  const Row student = row.student(p), teacher = row.teacher(p);
  const Row first = student_is_x ? student : teacher, second = student_is_x ? teacher : student;
  const Raw raw = p.options.ce_weight == A(0) ? Raw::none : student_is_x ? Raw::x : Raw::y;
  const Walk<A> walk(student.data, student.type, p.classes, threadIdx.x, blockDim.x);
  const ToBase2<A> k(row.temperature);

  PairSums<A> sums = no_sums<A>();
  walk.singles([&](int column) {
    const A x = element<A>(first.at(column), first.type), y = element<A>(second.at(column), second.type);
    absorb<1>(sums, &x, &y, k, raw);
  });
  walk.units(false, [&](int unit, int other) {
    with_values(first, second, walk.span, unit, other, [&](int, const A* x, const A* y) {
      absorb<kUnit<A>>(sums, x, y, k, raw);
    });
  });
  const PairSums<A> none = no_sums<A>();
  const Maxima<A> most = merge_warps(
      Maxima<A>{sums.max_x, sums.max_y}, Maxima<A>{none.max_x, none.max_y}, shared_maxima, warp, warps, Larger());
  rescale(sums, most.x, most.y, k, raw);
  sums = merge_warps(sums, PairSums<A>{most.x, most.y, 0, 0, 0, 0}, shared_sums, warp, warps, Add());
  RowStats<A> stats = stats_of(sums, student_is_x);

  if (direction == Direction::js) {
    const Slope<A> slope = row.slope(p, direction, stats, A(1));
    Pair<A> pair{0, 0, 0, 0};
    walk.units(true, [&](int unit, int other) {
      with_values(student, teacher, walk.span, unit, other, [&](int, const A* x, const A* y) {
        Pair<A> few{0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < kUnit<A>; ++i) {
          slope.add_divergences(x[i], y[i], few);
        }
        pair = pair + few;
      });
    });
    walk.singles([&](int column) {
      slope.add_divergences(
          element<A>(student.at(column), student.type), element<A>(teacher.at(column), teacher.type), pair);
    });
    pair = merge_warps(pair, Pair<A>{0, 0, 0, 0}, shared_pairs, warp, warps, Add());
    stats.mean_student = pair.student / pair.q;
    stats.mean_teacher = pair.teacher / pair.p;
  }
  return stats;
}

// The row's gradient for a gradient of 1, from the end that the last sweep left.
template <Direction direction, class A>
__device__ __forceinline__ void write_gradient(
    const Rows<A>& p, const RowInfo<A>& row, const Slope<A>& slope, char* gradient) {
  const Row student = row.student(p), teacher = row.teacher(p);
  const TargetRow target{gradient + row.row * p.classes * bytes_of(student.type), student.type};
  const Walk<A> walk(target.data, target.type, p.classes, threadIdx.x, blockDim.x);
  walk.units(direction != Direction::js, [&](int unit, int other) {
    with_values(student, teacher, walk.span, unit, other, [&](int column, const A* x, const A* y) {
      A to_student[kUnit<A>], to_teacher[kUnit<A>];
      slope.template gradients<kUnit<A>>(x, y, column, 1, false, to_student, to_teacher);
      keep_or_zero(row.kept, to_student);
      store_unit(target, column, to_student);
    });
  });
  walk.singles([&](int column) {
    const A x = element<A>(student.at(column), student.type), y = element<A>(teacher.at(column), teacher.type);
    A to_student, to_teacher;
    slope.template gradients<1>(&x, &y, column, 1, false, &to_student, &to_teacher);
    put_element(target.at(column), target.type, row.kept ? to_student : A(0));
  });
}

template <class A, Direction direction, bool gradient>
__global__ void __launch_bounds__(kWideThreads, forward_blocks<A>(direction, gradient))
    wide_forward(const __grid_constant__ Rows<A> p, const __grid_constant__ ForwardTargets<A> to) {
  Total total{0, 0};
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < p.rows(); first += int64_t{gridDim.x} * blockDim.y) {
    if (first + threadIdx.y >= p.rows()) {
      break;  // only where a row belongs to one warp, so no barrier is missed
    }
    const RowInfo<A> row(p, first + threadIdx.y);
    RowStats<A> stats{0, 0, 0, 0, 0, 0, 0};
    A loss = 0;
    if (row.kept) {
      stats = measure<direction>(p, row);
      const Row student = row.student(p);
      const A label_logit = p.options.ce_weight != A(0) ? element<A>(student.at(row.label), student.type) : A(0);
      loss = row.loss(p, row.slope(p, direction, stats, A(1)), label_logit);
    }
    if (threadIdx.x == 0) {
      total.loss += loss;
      total.kept += row.kept ? 1 : 0;
      if (to.losses) {
        to.losses[row.row] = loss;
      }
      if (to.stats) {
        to.stats[row.row] = stats;
      }
    }
    if constexpr (gradient) {
      write_gradient<direction>(p, row, row.slope(p, direction, stats, A(1) / forward_divisor(to)), to.gradient);
    }
  }
  finish(to, total);
}

// gridDim.y blocks share a row. `summed`: a teacher's row gets the sum over the groups.
template <class A, Direction direction, bool summed>
__global__ void __launch_bounds__(kWideThreads, kBackwardBlocks<A>)
    wide_backward(const __grid_constant__ Rows<A> p, const __grid_constant__ BackwardTargets<A> to) {
  const int thread = blockIdx.y * blockDim.x + threadIdx.x, threads = gridDim.y * blockDim.x;
  const auto target = [&](char* gradient, Type type, int64_t row) {
    return TargetRow{gradient + row * p.classes * bytes_of(type), type};
  };
  const auto slope_of = [&](const RowInfo<A>& row) {
    return row.slope(p, direction, to.stats[row.row], row.factor(to));
  };
  for (int64_t index = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; index < to.rows;
       index += int64_t{gridDim.x} * blockDim.y) {
    const TargetRow to_teacher = target(to.teacher, to.teacher_type, index);
    if constexpr (summed) {
      const Walk<A> walk(to_teacher.data, to_teacher.type, p.classes, thread, threads);
      // One unit, or one column, of all the rows that share the teacher's.
      const auto sum_over = [&]<int n>(int column, A(&sum)[n], const auto& read, const auto& write) {
        for (int64_t loop = 0; loop < to.loops; ++loop) {
          const RowInfo<A> row(p, loop * to.rows + index);
          A own[n] = {}, other[n] = {};
          if (row.kept) {
            A x[n], y[n];
            read(row.student(p), x);
            read(row.teacher(p), y);
            slope_of(row).template gradients<n>(x, y, column, 1, true, own, other);
          }
          if (to.student) {
            write(target(to.student, to.student_type, row.row), own);
          }
#pragma unroll
          for (int i = 0; i < n; ++i) {
            sum[i] += other[i];
          }
        }
        write(to_teacher, sum);
      };
#pragma unroll 1
      for (int unit = thread; unit < walk.span.units; unit += threads) {
        const int column = walk.span.unit(unit);
        A sum[kUnit<A>] = {};
        sum_over(
            column, sum,
            [&](const Row& row, A* values) {
              Unit<A> words;
              words.load(row, column);
              words.values(row, values);
            },
            [&](const TargetRow& row, const A* values) { store_unit(row, column, values); });
      }
      walk.singles([&](int column) {
        A sum[1] = {};
        sum_over(
            column, sum, [&](const Row& row, A* value) { *value = element<A>(row.at(column), row.type); },
            [&](const TargetRow& row, const A* value) { put_element(row.at(column), row.type, *value); });
      });
    } else {
      const RowInfo<A> row(p, index);
      const Slope<A> slope = slope_of(row);
      const Row student = row.student(p), teacher = row.teacher(p);
      const TargetRow to_student = target(to.student, to.student_type, index);
      const TargetRow aligned = to.student ? to_student : to_teacher;
      const Walk<A> walk(aligned.data, aligned.type, p.classes, thread, threads);
      walk.units(false, [&](int unit, int other) {
        with_values(student, teacher, walk.span, unit, other, [&](int column, const A* x, const A* y) {
          A own[kUnit<A>], others[kUnit<A>];
          slope.template gradients<kUnit<A>>(x, y, column, 1, to.teacher != nullptr, own, others);
          if (to.student) {
            keep_or_zero(row.kept, own);
            store_unit(to_student, column, own);
          }
          if (to.teacher) {
            keep_or_zero(row.kept, others);
            store_unit(to_teacher, column, others);
          }
        });
      });
      walk.singles([&](int column) {
        const A x = element<A>(student.at(column), student.type), y = element<A>(teacher.at(column), teacher.type);
        A own, others;
        slope.template gradients<1>(&x, &y, column, 1, to.teacher != nullptr, &own, &others);
        if (to.student) {
          put_element(to_student.at(column), to_student.type, row.kept ? own : A(0));
        }
        if (to.teacher) {
          put_element(to_teacher.at(column), to_teacher.type, row.kept ? others : A(0));
        }
      });
    }
  }
}

}  // namespace merc::kd_divergence::cuda

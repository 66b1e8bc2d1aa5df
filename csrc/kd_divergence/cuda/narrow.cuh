// Rows of up to 64 classes. A block takes a tile of neighbouring rows through shared memory; a row belongs to a power
// of two of lanes, each of which holds up to 8 (double: 2) of its classes in registers: lane, lane + lanes, ...
// Value and gradient are those of row_math.cuh.
#pragma once

#include <cstdint>

#include "rows.cuh"

namespace merc::kd_divergence::cuda {

constexpr int kNarrow = 64;
constexpr int kNarrowThreads = 128;
template <class A>
constexpr int kHeld = sizeof(A) == 4 ? 8 : 2;  // classes a lane

template <class A>
__host__ __device__ constexpr int lanes_a_row(int classes) {
  int lanes = 1;
  while (lanes * kHeld<A> < classes) {
    lanes *= 2;
  }
  return lanes;
}

template <class A>
__host__ __device__ constexpr int rows_a_tile(int classes) {
  return kNarrowThreads / lanes_a_row<A>(classes);
}

// Room for a tile of the widest type, aligned for 16-byte accesses.
template <class A>
constexpr int kTileVectors = kNarrowThreads * kHeld<A> * sizeof(A) / sizeof(uint4);

// Copies between device and shared memory, by the whole block, 16 bytes a thread where both ends allow it.
__device__ __forceinline__ void copy_tile(char* to, const char* from, int bytes) {
  const uintptr_t ends = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  int done = 0;
  if (ends % 16 == 0) {
    for (int i = threadIdx.x; i < bytes / 16; i += kNarrowThreads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    done = bytes / 16 * 16;
  } else if (ends % 4 == 0) {
    for (int i = threadIdx.x; i < bytes / 4; i += kNarrowThreads) {
      reinterpret_cast<uint32_t*>(to)[i] = reinterpret_cast<const uint32_t*>(from)[i];
    }
    done = bytes / 4 * 4;
  }
  for (int i = done / 2 + threadIdx.x; i < bytes / 2; i += kNarrowThreads) {
    reinterpret_cast<uint16_t*>(to)[i] = reinterpret_cast<const uint16_t*>(from)[i];
  }
}

// Rows [first, first + n) into `tile`, one after the other.
template <class A>
__device__ __forceinline__ void stage(const Rows<A>& p, const Logits& logits, int64_t first, int64_t n, char* tile) {
  const int bytes = bytes_of(logits.type);
  const int64_t first_group = p.groups == 1 ? 0 : divide(first, p.rows_a_group);
  const int64_t first_index = first - first_group * p.rows_a_group;
  const int64_t start = logits.offset(first_group, first_index);
  const bool one_group = first_index + n <= p.rows_a_group;
  if (logits.row_stride == p.classes && (one_group || logits.group_stride == p.rows_a_group * p.classes)) {
    copy_tile(tile, logits.data + start * bytes, static_cast<int>(n) * p.classes * bytes);
    return;
  }
  for (int i = threadIdx.x; i < static_cast<int>(n) * p.classes; i += kNarrowThreads) {
    const int64_t row = first + i / p.classes;
    const int64_t group = one_group ? first_group : divide(row, p.rows_a_group);
    const char* from = logits.data + (logits.offset(group, row - group * p.rows_a_group) + i % p.classes) * bytes;
    char* to = tile + i * bytes;
    if (bytes == 2) {
      *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
    } else if (bytes == 4) {
      *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
    } else {
      *reinterpret_cast<uint64_t*>(to) = *reinterpret_cast<const uint64_t*>(from);
    }
  }
}

// A lane's part of a row that lies in a tile.
struct LaneClasses {
  int lane, lanes, classes;

  __device__ int column(int i) const { return lane + i * lanes; }

  template <class A>
  __device__ void take(const char* row, Type type, bool kept, A* held) const {
#pragma unroll
    for (int i = 0; i < kHeld<A>; ++i) {
      held[i] = -std::numeric_limits<A>::infinity();
      if (kept && column(i) < classes) {
        held[i] = element<A>(row + column(i) * bytes_of(type), type);
      }
    }
  }

  template <class A>
  __device__ void gradients(
      const RowInfo<A>& row, const Slope<A>& slope, const A* student, const A* teacher, bool both, A* to_student,
      A* to_teacher) const {
    slope.template gradients<kHeld<A>>(student, teacher, lane, lanes, both, to_student, to_teacher);
#pragma unroll
    for (int i = 0; i < kHeld<A>; ++i) {
      to_student[i] = row.kept ? to_student[i] : A(0);
      to_teacher[i] = row.kept ? to_teacher[i] : A(0);
    }
  }

  template <class A>
  __device__ void put(char* row, Type type, const A* held) const {
#pragma unroll
    for (int i = 0; i < kHeld<A>; ++i) {
      if (column(i) < classes) {
        put_element(row + column(i) * bytes_of(type), type, held[i]);
      }
    }
  }
};

// The row's stats, by its lanes together.
template <class A>
__device__ __forceinline__ RowStats<A> measure(
    const Rows<A>& p, const RowInfo<A>& row, int lanes, const A* student, const A* teacher) {
  const ToBase2<A> k(row.temperature);
  RowStats<A> of{std::numeric_limits<A>::lowest(), std::numeric_limits<A>::lowest(), 0, 0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kHeld<A>; ++i) {
    of.max_student = larger(of.max_student, student[i]);
    of.max_teacher = larger(of.max_teacher, teacher[i]);
  }
  of.max_student = merge_lanes(of.max_student, lanes, Larger());
  of.max_teacher = merge_lanes(of.max_teacher, lanes, Larger());
  A z_student = 0, z_teacher = 0, bracket = 0;
#pragma unroll
  for (int i = 0; i < kHeld<A>; ++i) {
    const A x = student[i] - of.max_student, y = teacher[i] - of.max_teacher;
    const A e_x = power2(k(x)), e_y = power2(k(y));
    z_student += e_x;
    z_teacher += e_y;
    if (p.options.direction == Direction::forward) {
      bracket += e_y == A(0) ? A(0) : e_y * (y - x);
    } else {
      bracket += e_x == A(0) ? A(0) : e_x * (x - y);
    }
  }
  z_student = merge_lanes(z_student, lanes, Add());
  z_teacher = merge_lanes(z_teacher, lanes, Add());
  of.log_z_student = logarithm2(z_student);
  of.log_z_teacher = logarithm2(z_teacher);
  if (p.options.ce_weight != A(0)) {
#pragma unroll
    for (int i = 0; i < kHeld<A>; ++i) {
      of.log_z_raw += power2((student[i] - of.max_student) * A(kLog2e));
    }
    of.log_z_raw = logarithm2(merge_lanes(of.log_z_raw, lanes, Add()));
  }
  if (p.options.direction == Direction::js) {
    const Slope<A> slope = row.slope(p, p.options.direction, of, A(1));
    Pair<A> sums{0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kHeld<A>; ++i) {
      slope.add_divergences(student[i], teacher[i], sums);
    }
    sums = merge_lanes(sums, lanes, Add());
    of.mean_student = sums.student / sums.q;
    of.mean_teacher = sums.teacher / sums.p;
  } else {
    of.mean_student = of.mean_teacher =
        merge_lanes(bracket, lanes, Add()) / (p.options.direction == Direction::forward ? z_teacher : z_student) +
        nothing_of(of.log_z_student, of.log_z_teacher);
  }
  return of;
}

template <class A>
__global__ void __launch_bounds__(kNarrowThreads, 1)
    narrow_forward(const __grid_constant__ Rows<A> p, const __grid_constant__ ForwardTargets<A> to) {
  __shared__ uint4 student_tile[kTileVectors<A>], teacher_tile[kTileVectors<A>];
  char* const student_rows = reinterpret_cast<char*>(student_tile);
  char* const teacher_rows = reinterpret_cast<char*>(teacher_tile);
  const int lanes = lanes_a_row<A>(p.classes);
  const LaneClasses lane{static_cast<int>(threadIdx.x) % lanes, lanes, p.classes};
  const int local = threadIdx.x / lane.lanes, tile = rows_a_tile<A>(p.classes);
  Total total{0, 0};
  for (int64_t first = int64_t{blockIdx.x} * tile; first < p.rows(); first += int64_t{gridDim.x} * tile) {
    const int64_t n = p.rows() - first < tile ? p.rows() - first : tile;
    __syncthreads();  // the last tile is done with
    stage(p, p.student, first, n, student_rows);
    stage(p, p.teacher, first, n, teacher_rows);
    __syncthreads();
    // Lanes beyond the last row go along with it: they take part in the shuffles, and write nothing.
    const bool real = local < n;
    const RowInfo<A> row(p, first + (real ? local : 0));
    char* const student_row = student_rows + (real ? local : 0) * lane.classes * bytes_of(p.student.type);
    char* const teacher_row = teacher_rows + (real ? local : 0) * lane.classes * bytes_of(p.teacher.type);
    A student[kHeld<A>], teacher[kHeld<A>];
    lane.take(student_row, p.student.type, row.kept, student);
    lane.take(teacher_row, p.teacher.type, row.kept, teacher);
    RowStats<A> stats = measure(p, row, lane.lanes, student, teacher);
    A loss = 0;
    if (row.kept) {
      const A label_logit = p.options.ce_weight != A(0)
                                ? element<A>(student_row + row.label * bytes_of(p.student.type), p.student.type)
                                : A(0);
      loss = row.loss(p, row.slope(p, p.options.direction, stats, A(1)), label_logit);
    } else {
      stats = {0, 0, 0, 0, 0, 0, 0};
    }
    if (real && lane.lane == 0) {
      total.loss += loss;
      total.kept += row.kept ? 1 : 0;
      if (to.losses) {
        to.losses[row.row] = loss;
      }
      if (to.stats) {
        to.stats[row.row] = stats;
      }
    }
    if (to.gradient) {
      A to_student[kHeld<A>], to_teacher[kHeld<A>];
      lane.gradients(
          row, row.slope(p, p.options.direction, stats, A(1) / forward_divisor(to)), student, teacher, false,
          to_student, to_teacher);
      __syncthreads();  // label_logit was read from where others write
      if (real) {
        lane.put(student_row, p.student.type, to_student);
      }
      __syncthreads();
      const int64_t row_bytes = int64_t{p.classes} * bytes_of(p.student.type);
      copy_tile(to.gradient + first * row_bytes, student_rows, static_cast<int>(n * row_bytes));
    }
  }
  finish(to, total);
}

template <class A>
__global__ void __launch_bounds__(kNarrowThreads, 1)
    narrow_backward(const __grid_constant__ Rows<A> p, const __grid_constant__ BackwardTargets<A> to) {
  __shared__ uint4 student_tile[kTileVectors<A>], teacher_tile[kTileVectors<A>];
  char* const student_rows = reinterpret_cast<char*>(student_tile);
  char* const teacher_rows = reinterpret_cast<char*>(teacher_tile);
  const int lanes = lanes_a_row<A>(p.classes);
  const LaneClasses lane{static_cast<int>(threadIdx.x) % lanes, lanes, p.classes};
  const int local = threadIdx.x / lane.lanes, tile = rows_a_tile<A>(p.classes);
  const int64_t student_bytes = int64_t{p.classes} * bytes_of(p.student.type);
  const int64_t teacher_bytes = int64_t{p.classes} * bytes_of(p.teacher.type);
  for (int64_t first = int64_t{blockIdx.x} * tile; first < to.rows; first += int64_t{gridDim.x} * tile) {
    const int64_t n = to.rows - first < tile ? to.rows - first : tile;
    const bool real = local < n;
    char* const student_row = student_rows + (real ? local : 0) * student_bytes;
    char* const teacher_row = teacher_rows + (real ? local : 0) * teacher_bytes;
    A sum[kHeld<A>] = {};
    for (int64_t loop = 0; loop < to.loops; ++loop) {
      const int64_t start = loop * to.rows + first;
      __syncthreads();  // the last tile is done with
      stage(p, p.student, start, n, student_rows);
      stage(p, p.teacher, start, n, teacher_rows);
      __syncthreads();
      const RowInfo<A> row(p, start + (real ? local : 0));
      A student[kHeld<A>], teacher[kHeld<A>], to_student[kHeld<A>], to_teacher[kHeld<A>];
      lane.take(student_row, p.student.type, row.kept, student);
      lane.take(teacher_row, p.teacher.type, row.kept, teacher);
      lane.gradients(
          row, row.slope(p, p.options.direction, to.stats[row.row], row.factor(to)), student, teacher,
          to.teacher != nullptr, to_student, to_teacher);
#pragma unroll
      for (int i = 0; i < kHeld<A>; ++i) {
        sum[i] += to_teacher[i];
      }
      if (to.student) {
        __syncthreads();  // all have taken their logits
        if (real) {
          lane.put(student_row, p.student.type, to_student);
        }
        __syncthreads();
        copy_tile(to.student + start * student_bytes, student_rows, static_cast<int>(n * student_bytes));
      }
    }
    if (to.teacher) {
      __syncthreads();
      if (real) {
        lane.put(teacher_row, p.teacher.type, sum);
      }
      __syncthreads();
      copy_tile(to.teacher + first * teacher_bytes, teacher_rows, static_cast<int>(n * teacher_bytes));
    }
  }
}

}  // namespace merc::kd_divergence::cuda

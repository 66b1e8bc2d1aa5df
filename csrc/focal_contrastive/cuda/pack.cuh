// The rows of the three inputs into one list, normalised, a warp a row; and the way back of their gradient:
//
//   z = x / |x|    dx = (dz - (z.dz) z) / |x|
#pragma once

#include <cstdint>

#include "batch.cuh"

namespace merc::focal_contrastive::cuda {

constexpr int kPackThreads = 128;

// The rows of one Source and their labels.
struct SourceRows {
  const char* data;
  Type type;
  int64_t group_stride, row_stride;  // groups that share the rows lie 0 apart
  int first, count;                  // among the packed rows
  const int64_t* labels = nullptr;   // or null: row c has label c
  int64_t labels_group_stride = 0;

  SourceRows() = default;
  explicit SourceRows(const Source& source)
      : data(source.data),
        type(source.tensor ? type_of(*source.tensor) : Type::f32),
        group_stride(source.group_stride),
        row_stride(source.row_stride),
        first(static_cast<int>(source.first)),
        count(static_cast<int>(source.rows)) {}

  __device__ Row row(int64_t group, int index) const {
    return {data + (group * group_stride + index * row_stride) * bytes_of(type), type};
  }
};

template <class A>
struct Packed {
  SourceRows sources[kSources];
  Type z_type;
  char* z;
  A* norms;
  int64_t* index;
  int64_t classes;     // -1: not known
  unsigned* counters;  // `counted` of them, set to 0
  int64_t counted;
};

template <class A>
__global__ void __launch_bounds__(kPackThreads)
    pack(const __grid_constant__ Batch<A> p, const __grid_constant__ Packed<A> to) {
  const int64_t thread = int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  const int64_t row = thread / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (thread < to.counted) {
    to.counters[thread] = 0;
  }
  if (row >= p.groups * p.rows) {
    return;
  }
  const int64_t group = divide(row, p.rows);
  const int packed = static_cast<int>(row - group * p.rows);
  const SourceRows& source = to.sources[packed < to.sources[1].first ? 0 : packed < to.sources[2].first ? 1 : 2];
  const int at = packed - source.first;
  const int64_t label = source.labels ? source.labels[group * source.labels_group_stride + at] : at;
  const bool kept = label != p.options.ignore_index && (to.classes < 0 || (label >= 0 && label < to.classes));
  const Row x = source.row(group, at);
  // Over the largest element first: no square over- or underflows.
  A size = 0, square = 0;
  if (kept && p.options.normalize) {
    for (int i = lane; i < p.width; i += kWarp) {
      const A value = fabs(element<A>(x.at(i), x.type));
      size = value > size || value != value ? value : size;
    }
    size = merge_lanes(size, kWarp, [](A a, A b) { return a > b || a != a ? a : b; });
    if (size != A(0)) {
      for (int i = lane; i < p.width; i += kWarp) {
        const A value = element<A>(x.at(i), x.type) / size;
        square += value * value;
      }
      square = merge_lanes(square, kWarp, Add());
    }
  }
  const A root = sqrt(square);
  const bool zero = p.options.normalize && size == A(0);
  char* const z = to.z + row * p.width * bytes_of(to.z_type);
  for (int i = lane; i < p.width; i += kWarp) {
    const A value = !kept || zero ? A(0) : element<A>(x.at(i), x.type);
    put_element<A>(
        z + i * bytes_of(to.z_type), to.z_type, kept && !zero && p.options.normalize ? value / size / root : value);
  }
  if (lane == 0) {
    to.norms[row] = !kept || zero ? A(0) : p.options.normalize ? A(1) / size / root : A(1);
    to.index[row] = kept ? label : p.options.ignore_index;
    p.stats[row] = {std::numeric_limits<A>::infinity(), 0, 0, 0};
  }
}

constexpr int kUnpackThreads = 256;  // at most
constexpr int kHeld = 4;             // columns a thread

// The gradient of one input: of rows shared by the groups, the sum over them.
struct Target {
  char* data;  // contiguous, or null
  int64_t rows;
  int64_t groups;  // that share a row
};

template <class A>
struct Unpacked {
  SourceRows sources[kSources];
  Target targets[kSources];
  const A* norms;
  const A* parts;  // of tau dz: (splits, G, part_rows, width), the packed rows from first_row on
  int splits, first_row, part_rows;
  const double* slopes;  // parts of -tau dloss/dtau, or null
  int64_t slope_count;
  A* to_temperature;
};

// tau dz of one row, `kHeld` columns of a thread from `first` on, and its product with z = x |x|^-1.
template <class A>
__device__ __forceinline__ A take(
    const Batch<A>& p, const Unpacked<A>& from, const Row& x, int64_t group, int packed, A norm, int first, A* z,
    A* dz) {
  const A* part = from.parts + (group * from.part_rows + packed - from.first_row) * p.width;
  const int64_t stride = p.groups * from.part_rows * p.width;
  const int step = static_cast<int>(blockDim.x);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int column = first + i * step;
    dz[i] = 0;
    z[i] = p.options.normalize && column < p.width ? element<A>(x.at(column), x.type) * norm : A(0);
  }
  for (int split = 0; split < from.splits; ++split) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int column = first + i * step;
      dz[i] += column < p.width ? part[split * stride + column] : A(0);
    }
  }
  A product = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    product += z[i] * dz[i];
  }
  return product;
}

// One row.
template <class A>
__device__ __forceinline__ void unpack_row(
    const Batch<A>& p, const Unpacked<A>& from, const SourceRows& source, const Target& target, int64_t row) {
  __shared__ A shared[kWarp];
  const int64_t own_group = divide(row, source.count);
  const int at = static_cast<int>(row - own_group * source.count), packed = source.first + at;
  const int step = blockDim.x * kHeld;
  const A per_tau = A(1) / p.tau();
  const auto add = Add();
  for (int piece = 0; piece < p.width; piece += step) {
    A sum[kHeld] = {};
    for (int64_t i = 0; i < target.groups; ++i) {
      const int64_t group = own_group + i;
      const A norm = from.norms[group * p.rows + packed];
      if (norm == A(0)) {
        continue;
      }
      const Row x = source.row(group, at);
      A z[kHeld], dz[kHeld];
      A product = 0;
      for (int other = 0; p.options.normalize && other < p.width; other += step) {
        if (other != piece) {
          product += take(p, from, x, group, packed, norm, other + static_cast<int>(threadIdx.x), z, dz);
        }
      }
      product += take(p, from, x, group, packed, norm, piece + static_cast<int>(threadIdx.x), z, dz);
      product = merge_warps(product, A(0), shared, threadIdx.x / kWarp, blockDim.x / kWarp, add);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        sum[k] += (dz[k] - product * z[k]) * (norm * per_tau);
      }
    }
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int column = piece + static_cast<int>(threadIdx.x) + k * static_cast<int>(blockDim.x);
      if (column < p.width) {
        put_element<A>(target.data + (row * p.width + column) * bytes_of(source.type), source.type, sum[k]);
      }
    }
  }
}

// A row to threads of the same threadIdx.y; the block behind the last row sums up the temperature's gradient.
template <class A>
__global__ void __launch_bounds__(kUnpackThreads, 1)  // ptxas, left alone, spills to have more blocks at once
    unpack(const __grid_constant__ Batch<A> p, const __grid_constant__ Unpacked<A> from) {
  int64_t rows = 0;
  for (const Target& target : from.targets) {
    rows += target.rows;
  }
  int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (from.slopes && blockIdx.x == gridDim.x - 1) {
    Total mine{0, 0};
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int64_t i = thread; i < from.slope_count; i += blockDim.x * blockDim.y) {
      mine.loss += from.slopes[i];
    }
    mine = block_total(mine);
    if (thread == 0) {
      *from.to_temperature = static_cast<A>(-mine.loss / p.tau());
    }
    return;
  }
  for (int i = 0; i < kSources; ++i) {
    if (row < from.targets[i].rows) {
      unpack_row(p, from, from.sources[i], from.targets[i], row);
      return;
    }
    row -= from.targets[i].rows;
  }
}

}  // namespace merc::focal_contrastive::cuda

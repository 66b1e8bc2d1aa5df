// The arguments of focal_contrastive on the CPU, checked, and what the arithmetic on a tile is told.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "../checks.h"
#include "focal.h"
#include "cpu/layout.h"

namespace merc::cpu {

// A tile of cosines: `rows` by `columns` of all rows, `stride` apart in memory.
struct View {
  const Layout* layout;
  Range rows, columns;
  int column_segment;
  bool diagonal, mutual;
  int64_t stride;

  bool both() const { return diagonal || mutual; }  // whether a column is an anchor too
  int32_t padded() const { return static_cast<int32_t>(whole(columns.size())); }
};

// s' of a cosine.
template <class A>
struct Scale {
  A centre, inverse;

  A operator()(A cosine) const { return (cosine - centre) * inverse; }
};

template <class A>
struct Options {
  A temperature, gamma, centre;
  Focal focal;
  Power power;
  bool detached, bounded;

  Scale<A> scale() const { return {centre, 1 / temperature}; }

  // Whether the sums over positives take a pass of their own: the probability form needs L there, and where s' is
  // large, sum h s' - L' sum h would lose what the terms do not.
  bool needs_l() const { return focal == Focal::probability || !bounded; }
};

// Of each row or column of a tile.
template <class A>
struct Sums {
  A *most, *e, *v, *h;
};

// Of each row or column of a tile: the parts of L'.
template <class A>
struct Logarithms {
  const A *most = nullptr, *log_e = nullptr;
};

// Of each row or column of a tile: a, L', and a G (over E in a bounded tile).
template <class A>
struct Weights {
  const A* a;
  Logarithms<A> l;
  const A* u;
};

// The rows of one argument: (R, D) shared by the groups, or (G, R, D).
struct Source {
  std::optional<Tensor> tensor;
  int64_t first = 0, rows = 0;  // within a group
  bool shared = false;
  const char* data = nullptr;
  int64_t row_bytes = 0;
};

// The arguments of both passes, checked.
struct Arguments {
  Source sources[3];
  Sizes sizes;
  int64_t width;
  ScalarType accumulate;
  double temperature, gamma;
  Focal focal;
  bool detached, normalize;

  Arguments(
      const Tensor& embeddings, const std::optional<Tensor>& prototypes, const std::optional<Tensor>& refs,
      const std::optional<Tensor>& temperature_tensor, double temperature_, double gamma_, int64_t focal_,
      bool detached_, bool prototype_anchors, bool ref_only, bool normalize_)
      : width(embeddings.size(-1)),
        accumulate(accumulate_type(embeddings.scalar_type())),
        temperature(temperature_),
        gamma(gamma_),
        focal(static_cast<Focal>(focal_)),
        detached(detached_),
        normalize(normalize_) {
    STD_TORCH_CHECK(
        embeddings.dim() == 2 || embeddings.dim() == 3, "embeddings: expected shape (N, D) or (G, N, D), got ",
        shape_of(embeddings));
    STD_TORCH_CHECK(focal_ == 0 || focal_ == 1, "focal: expected 0 or 1, got ", focal_);
    STD_TORCH_CHECK(!(ref_only && prototypes), "prototypes: expected none with ref_only");
    const int64_t groups = embeddings.dim() == 3 ? embeddings.size(0) : 1;
    const std::optional<Tensor> tensors[] = {embeddings, prototypes, refs};
    const char* const names[] = {"embeddings", "prototypes", "refs"};
    int64_t first = 0;
    for (int i = 0; i < 3; ++i) {
      if (tensors[i]) {
        check_float(names[i], *tensors[i]);
        STD_TORCH_CHECK(
            accumulate_type(tensors[i]->scalar_type()) == accumulate, names[i],
            ": expected float64 as the embeddings, or neither");
        const int64_t rows = tensors[i]->size(-2), tail[] = {rows, width};
        check_shape(names[i], *tensors[i], groups, tail, 2);
        const Tensor tensor = torch::stable::contiguous(*tensors[i]);
        const auto bytes = width * static_cast<int64_t>(tensor.element_size());
        sources[i] = {tensor, first, rows, tensor.dim() == 2, static_cast<const char*>(tensor.const_data_ptr()), bytes};
        first += rows;
      }
    }
    STD_TORCH_CHECK(first < (int64_t{1} << 31), "embeddings: expected fewer than 2^31 rows in all, got ", first);
    sizes = {groups, sources[0].rows, sources[1].rows, sources[2].rows, prototype_anchors, ref_only};
    if (temperature_tensor) {
      check_dtype("temperature_tensor", *temperature_tensor, accumulate);
      STD_TORCH_CHECK(
          temperature_tensor->numel() == 1, "temperature_tensor: expected one element, got ",
          shape_of(*temperature_tensor));
      const void* value = temperature_tensor->const_data_ptr();
      temperature = accumulate == ScalarType::Double ? *static_cast<const double*>(value)
                                                     : static_cast<double>(*static_cast<const float*>(value));
    }
  }

  // e^(s - 1/tau) of unit rows keeps the smallest and the largest of a sum in range while 2/tau <= 80.
  bool bounded() const { return normalize && temperature >= 0.025; }

  template <class A>
  Options<A> options() const {
    return {static_cast<A>(temperature), static_cast<A>(gamma), A(bounded() ? 1 : 0), focal,
            power_of(gamma),             detached,              bounded()};
  }
};

}  // namespace merc::cpu

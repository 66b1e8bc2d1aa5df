// The tensors of a call of focal_contrastive, checked, kept alive, with a unit last stride; and how they are packed.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "../../checks.h"
#include "../focal.h"
#include "pack.cuh"
#include "../../cuda/launch.cuh"
#include "../../cuda/tensors.cuh"

namespace merc::cuda::contrastive {

struct Options {
  double temperature, gamma;
  int64_t focal;
  bool detach_focal, prototype_anchors, ref_only, normalize;
  int64_t ignore_index;
};

inline std::optional<Tensor> with_unit_stride(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(cuda::with_unit_stride(*tensor)) : std::nullopt;
}

template <class T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

struct Arguments {
  Options options;
  Tensor embeddings;
  std::optional<Tensor> prototypes, refs, learnable;
  Place place;
  int64_t groups, width;
  int64_t counts[kSources];  // of embeddings, prototypes, refs
  ScalarType accumulate, z_type;

  Arguments(
      const Tensor& embeddings_, const std::optional<Tensor>& prototypes_, const std::optional<Tensor>& refs_,
      const std::optional<Tensor>& learnable_, const Options& options_)
      : options(options_),
        embeddings(cuda::with_unit_stride(embeddings_)),
        prototypes(with_unit_stride(prototypes_)),
        refs(with_unit_stride(refs_)),
        learnable(learnable_),
        place(embeddings) {
    STD_TORCH_CHECK(
        embeddings.dim() == 2 || embeddings.dim() == 3, "embeddings: expected shape (N, D) or (G, N, D), got ",
        shape_of(embeddings));
    STD_TORCH_CHECK(options.focal == 0 || options.focal == 1, "focal: expected 0 or 1, got ", options.focal);
    groups = embeddings.dim() == 3 ? embeddings.size(0) : 1;
    width = embeddings.size(-1);
    STD_TORCH_CHECK(
        width > 0 && width <= 1 << 24, "embeddings: expected 1 to ", 1 << 24, " columns, got ", shape_of(embeddings));
    check_float("embeddings", embeddings);
    counts[0] = embeddings.size(-2);
    accumulate = accumulate_type(embeddings.scalar_type());
    z_type = embeddings.scalar_type();
    counts[1] = join("prototypes", prototypes);
    counts[2] = join("refs", refs);
    if (!is_half(z_type)) {
      z_type = accumulate;
    }
    STD_TORCH_CHECK(
        rows() <= std::numeric_limits<int>::max() - 64,
        "embeddings, prototypes, refs: expected fewer than 2**31 rows, got ", rows());
    if (learnable) {
      check_dtype("temperature_tensor", *learnable, accumulate);
      place.check_here("temperature_tensor", *learnable);
      STD_TORCH_CHECK(
          learnable->dim() == 0, "temperature_tensor: expected a scalar, got ", shape_of(*learnable));
    }
  }

  int64_t rows() const { return counts[0] + counts[1] + counts[2]; }

  std::optional<Tensor> source(int i) const {
    return i == 0 ? std::optional(embeddings) : i == 1 ? prototypes : refs;
  }

  std::vector<int64_t> row_shape() const {
    return embeddings.dim() == 3 ? std::vector<int64_t>{groups, counts[0]} : std::vector<int64_t>{counts[0]};
  }

  void fill_sources(Source (&sources)[kSources]) const {
    int first = 0;
    for (int i = 0; i < kSources; ++i) {
      sources[i] = Source{nullptr, Type::f32, 0, 0, first, static_cast<int>(counts[i]), nullptr, 0};
      if (const std::optional<Tensor> tensor = source(i)) {
        sources[i].data = static_cast<const char*>(tensor->const_data_ptr());
        sources[i].type = type_of(*tensor);
        sources[i].group_stride = tensor->dim() == 3 ? tensor->stride(0) : 0;
        sources[i].row_stride = tensor->stride(-2);
      }
      first += sources[i].count;
    }
  }

  template <class A>
  Problem<A> problem(const Tensor& z, const Tensor& numbers, const Tensor& index) const {
    Problem<A> p{};
    p.z = z.const_data_ptr();
    p.index = static_cast<const int64_t*>(index.const_data_ptr());
    p.numbers = static_cast<Numbers<A>*>(numbers.mutable_data_ptr());
    p.groups = groups;
    p.rows = static_cast<int>(rows());
    p.embeddings = static_cast<int>(counts[0]);
    p.anchors = static_cast<int>(counts[0] + (options.prototype_anchors ? counts[1] : 0));
    p.first_candidate = options.ref_only ? p.embeddings : 0;
    p.width = static_cast<int>(width);
    p.learnable = data_of<A>(learnable);
    p.temperature = static_cast<A>(options.temperature);
    p.gamma = static_cast<A>(options.gamma);
    p.focal = static_cast<Focal>(options.focal);
    p.power = power_of(options.gamma);
    p.detached = options.detach_focal;
    p.normalized = options.normalize;
    p.ignore_index = options.ignore_index;
    return p;
  }

 private:
  int64_t join(const char* name, const std::optional<Tensor>& tensor) {
    if (!tensor) {
      return 0;
    }
    STD_TORCH_CHECK(
        tensor->dim() == 2 || tensor->dim() == 3, name, ": expected 2 or 3 dimensions, got ", shape_of(*tensor));
    const int64_t tail[] = {tensor->size(-2), width};
    check_float(name, *tensor);
    check_shape(name, *tensor, groups, tail, 2);
    place.check_here(name, *tensor);
    if (tensor->scalar_type() != z_type) {
      const bool wide = z_type == ScalarType::Double || tensor->scalar_type() == ScalarType::Double;
      accumulate = wide ? ScalarType::Double : accumulate;
      z_type = accumulate;
    }
    return tail[0];
  }
};

}  // namespace merc::cuda::contrastive

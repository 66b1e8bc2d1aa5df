// The arguments of the focal contrastive loss, checked, for every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../checks.h"
#include "../reduction.h"
#include "../tensors.h"
#include "options.h"

namespace merc::focal_contrastive {

// The rows of a group stand as embeddings, prototypes, refs.
constexpr int kSources = 3;

// The rows of one argument: (R, D) shared by the groups, which then lie 0 apart, or (G, R, D).
struct Source {
  std::optional<Tensor> tensor;  // with a unit last stride
  int64_t first = 0, rows = 0;   // within a group
  const char* data = nullptr;
  ScalarType type = ScalarType::Float;
  int64_t bytes = 0;                         // of an element
  int64_t group_stride = 0, row_stride = 0;  // elements

  bool shared() const { return tensor && tensor->dim() == 2; }
};

// What both passes take.
struct Arguments {
  Source sources[kSources];
  std::optional<Tensor> temperature_tensor;  // one element, instead of options.temperature
  Options<double> options;
  int64_t groups, width;
  ScalarType accumulate;
  bool same_type = true;  // of all rows

  Arguments(
      const Tensor& embeddings, const std::optional<Tensor>& prototypes, const std::optional<Tensor>& refs,
      const std::optional<Tensor>& temperature_tensor_, const Options<double>& options_)
      : temperature_tensor(temperature_tensor_), options(options_) {
    STD_TORCH_CHECK(
        embeddings.dim() == 2 || embeddings.dim() == 3, "embeddings: expected shape (N, D) or (G, N, D), got ",
        shape_of(embeddings));
    STD_TORCH_CHECK(!(options.ref_only && prototypes), "prototypes: expected none with ref_only");
    groups = embeddings.dim() == 3 ? embeddings.size(0) : 1;
    width = embeddings.size(-1);
    accumulate = accumulate_type(embeddings.scalar_type());
    STD_TORCH_CHECK(
        width <= kMostColumns, "embeddings: expected at most ", kMostColumns, " columns, got ", shape_of(embeddings));
    take(0, "embeddings", embeddings, embeddings);
    take(1, "prototypes", prototypes, embeddings);
    take(2, "refs", refs, embeddings);
    STD_TORCH_CHECK(
        rows() < kMostRows, "embeddings, prototypes, refs: expected fewer than ", kMostRows, " rows in all, got ",
        rows());
    if (temperature_tensor) {
      check_dtype("temperature_tensor", *temperature_tensor, accumulate);
      check_device("temperature_tensor", *temperature_tensor, embeddings);
      STD_TORCH_CHECK(
          temperature_tensor->numel() == 1, "temperature_tensor: expected one element, got ",
          shape_of(*temperature_tensor));
    }
  }

  const Tensor& embeddings() const { return *sources[0].tensor; }

  int64_t rows() const { return sources[0].rows + sources[1].rows + sources[2].rows; }  // of a group

  // (N,) or (G, N).
  std::vector<int64_t> row_shape() const {
    std::vector<int64_t> shape = size_of(embeddings());
    shape.pop_back();
    return shape;
  }

 private:
  void take(int i, const char* name, const std::optional<Tensor>& tensor, const Tensor& embeddings) {
    Source& source = sources[i];
    source.first = i == 0 ? 0 : sources[i - 1].first + sources[i - 1].rows;
    if (!tensor) {
      return;
    }
    check_float(name, *tensor);
    check_device(name, *tensor, embeddings);
    STD_TORCH_CHECK(
        accumulate_type(tensor->scalar_type()) == accumulate, name, ": expected float64 as the embeddings, or neither");
    STD_TORCH_CHECK(
        tensor->dim() == 2 || tensor->dim() == 3, name, ": expected 2 or 3 dimensions, got ", shape_of(*tensor));
    const int64_t tail[] = {tensor->size(-2), width};
    check_shape(name, *tensor, groups, tail, 2);
    same_type = same_type && tensor->scalar_type() == embeddings.scalar_type();
    source.tensor = with_unit_stride(*tensor);
    source.rows = tail[0];
    source.data = static_cast<const char*>(source.tensor->const_data_ptr());
    source.type = source.tensor->scalar_type();
    source.bytes = static_cast<int64_t>(source.tensor->element_size());
    source.group_stride = source.shared() ? 0 : source.tensor->stride(0);
    source.row_stride = source.tensor->stride(-2);
  }
};

struct ForwardArguments {
  Arguments arguments;
  Tensor labels;
  std::optional<Tensor> ref_labels, class_weights;
  Reduction reduction;

  template <class Reader>
  explicit ForwardArguments(Reader& from) : ForwardArguments(Tensors(from), from) {}

  // The number of classes; -1 where nothing tells.
  int64_t classes() const {
    return arguments.sources[1].tensor ? arguments.sources[1].rows : class_weights ? class_weights->size(0) : -1;
  }

 private:
  struct Tensors {
    Tensor embeddings, labels;
    std::optional<Tensor> prototypes, refs, ref_labels, class_weights, temperature_tensor;

    template <class Reader>
    explicit Tensors(Reader& from)
        : embeddings(from.tensor()),
          labels(from.tensor()),
          prototypes(from.optional_tensor()),
          refs(from.optional_tensor()),
          ref_labels(from.optional_tensor()),
          class_weights(from.optional_tensor()),
          temperature_tensor(from.optional_tensor()) {}
  };

  template <class Reader>
  ForwardArguments(const Tensors& given, Reader& from)
      : arguments(
            given.embeddings, given.prototypes, given.refs, given.temperature_tensor, Options<double>::read(from)),
        labels(torch::stable::contiguous(given.labels)),
        ref_labels(contiguous(given.ref_labels)),
        class_weights(contiguous(given.class_weights)),
        reduction(checked(
            "reduction", from.integer(), {Reduction::none, Reduction::sum, Reduction::mean, Reduction::batchmean})) {
    STD_TORCH_CHECK(
        !(reduction == Reduction::none && arguments.options.prototype_anchors),
        "prototype_anchors: expected false with reduction 0");
    const Source &prototypes = arguments.sources[1], &refs = arguments.sources[2];
    check_labels("labels", labels, arguments.sources[0].rows);
    STD_TORCH_CHECK(ref_labels || refs.rows == 0, "ref_labels: expected a tensor");
    if (ref_labels) {
      check_labels("ref_labels", *ref_labels, refs.rows);
    }
    if (class_weights) {
      check_dtype("class_weights", *class_weights, arguments.accumulate);
      check_device("class_weights", *class_weights, arguments.embeddings());
      STD_TORCH_CHECK(
          class_weights->dim() == 1 && (!prototypes.tensor || class_weights->size(0) == prototypes.rows),
          "class_weights: expected one number a class, got ", shape_of(*class_weights));
    }
  }

  void check_labels(const char* name, const Tensor& tensor, int64_t rows) const {
    check_dtype(name, tensor, ScalarType::Long);
    check_shape(name, tensor, arguments.groups, &rows, 1);
    check_device(name, tensor, arguments.embeddings());
  }
};

// The gradients that are wanted: of the sources, and of the temperature.
struct Wanted {
  bool sources[kSources];
  bool temperature;

  template <class Reader>
  explicit Wanted(Reader& from) : sources{from.flag(), from.flag(), from.flag()}, temperature(from.flag()) {}
};

// Both passes at once, for a gradient of 1 of a loss that is one number.
struct BothArguments {
  ForwardArguments forward;
  Wanted wanted;

  template <class Reader>
  explicit BothArguments(Reader& from) : forward(from), wanted(from) {
    STD_TORCH_CHECK(forward.reduction != Reduction::none, "reduction: expected 1, 2 or 3, got 0");
  }
};

struct BackwardArguments {
  Tensor grad, divisor, z, norms, stats, index;
  Arguments arguments;
  Wanted wanted;
  bool all_anchors;  // prototypes and refs too, where stats says so

  template <class Reader>
  explicit BackwardArguments(Reader& from) : BackwardArguments(Tensors(from), from) {}

  // Whether the tensors are what the forward pass gave, with unit rows of `type`.
  void check_saved(ScalarType type) const {
    const int64_t groups = arguments.groups, rows = arguments.rows();
    check("divisor", divisor, arguments.accumulate, {});
    check("z", z, type, {groups, rows, arguments.width});
    check("norms", norms, arguments.accumulate, {groups, rows});
    check("stats", stats, arguments.accumulate, {groups, rows, kStats});
    check("index", index, ScalarType::Long, {groups, rows});
  }

 private:
  struct Tensors {
    Tensor grad, divisor, z, norms, stats, index, embeddings;
    std::optional<Tensor> prototypes, refs, temperature_tensor;

    template <class Reader>
    explicit Tensors(Reader& from)
        : grad(from.tensor()),
          divisor(from.tensor()),
          z(from.tensor()),
          norms(from.tensor()),
          stats(from.tensor()),
          index(from.tensor()),
          embeddings(from.tensor()),
          prototypes(from.optional_tensor()),
          refs(from.optional_tensor()),
          temperature_tensor(from.optional_tensor()) {}
  };

  template <class Reader>
  BackwardArguments(const Tensors& given, Reader& from)
      : grad(torch::stable::contiguous(given.grad)),
        divisor(given.divisor),
        z(given.z),
        norms(given.norms),
        stats(given.stats),
        index(given.index),
        arguments(
            given.embeddings, given.prototypes, given.refs, given.temperature_tensor, Options<double>::read(from)),
        wanted(from),
        all_anchors(from.flag()) {
    check_dtype("grad", grad, arguments.accumulate);
    check_device("grad", grad, arguments.embeddings());
    STD_TORCH_CHECK(
        grad.dim() == 0 || size_of(grad) == arguments.row_shape(), "grad: expected a scalar or a number a row, got ",
        shape_of(grad));
    STD_TORCH_CHECK(grad.dim() == 0 || !all_anchors, "grad: expected a scalar with all_anchors, got ", shape_of(grad));
  }

  void check(const char* name, const Tensor& tensor, ScalarType type, const std::vector<int64_t>& size) const {
    check_dtype(name, tensor, type);
    check_device(name, tensor, arguments.embeddings());
    STD_TORCH_CHECK(
        size_of(tensor) == size && tensor.is_contiguous(), name, ": expected what the forward pass gave, got ",
        shape_of(tensor));
  }
};

}  // namespace merc::focal_contrastive

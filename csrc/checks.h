// Argument checks of the operators: they name the argument, what was expected and what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "tensors.h"

namespace merc {

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    text += (d ? ", " : "") + std::to_string(tensor.size(d));
  }
  return text + ")";
}

// `tensor` ends in the `dims` sizes of `tail`, and has at most one axis before them: (*tail) or (groups, *tail).
inline void check_shape(const char* name, const Tensor& tensor, int64_t groups, const int64_t* tail, int64_t dims) {
  const int64_t extra = tensor.dim() - dims;
  bool fits = extra == 0 || (extra == 1 && tensor.size(0) == groups);
  for (int64_t d = 0; fits && d < dims; ++d) {
    fits = tensor.size(extra + d) == tail[d];
  }
  std::string expected;
  for (int64_t d = 0; d < dims; ++d) {
    expected += (d ? ", " : "") + std::to_string(tail[d]);
  }
  STD_TORCH_CHECK(
      fits, name, ": expected shape (", expected, ") or (", groups, ", ", expected, "), got ", shape_of(tensor));
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType expected) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == expected, name, ": expected ", torch::headeronly::toString(expected), ", got ",
      torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_float(const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Double || is_half(type), name,
      ": expected float64, float32, bfloat16 or float16, got ", torch::headeronly::toString(type));
}

// `tensor` is on the device of `first`. The CPU has the index -1.
inline void check_device(const char* name, const Tensor& tensor, const Tensor& first) {
  const auto index = first.get_device_index();
  STD_TORCH_CHECK(
      tensor.get_device_index() == index, name, ": expected a tensor on ",
      index < 0 ? "the CPU" : "cuda:" + std::to_string(index));
}

// The enumerator whose number is `value`, one of `choices`.
template <class Enum>
Enum checked(const char* name, int64_t value, std::initializer_list<Enum> choices) {
  for (const Enum choice : choices) {
    if (static_cast<int64_t>(choice) == value) {
      return choice;
    }
  }
  std::string expected;
  for (const Enum* choice = choices.begin(); choice != choices.end(); ++choice) {
    expected += choice == choices.begin() ? "" : choice + 1 == choices.end() ? " or " : ", ";
    expected += std::to_string(static_cast<int64_t>(*choice));
  }
  STD_TORCH_CHECK(false, name, ": expected ", expected, ", got ", value);
}

}  // namespace merc

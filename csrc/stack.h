// An operator's arguments as the dispatcher hands them over, read one by one in the order of its schema; its results.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace merc {

using torch::stable::Tensor;

// Whoever reads a tensor owns it, so all of them are read before anything is checked.
class Stack {
 public:
  Stack(const StableIValue* values, uint64_t count) : at_(values), end_(values + count) {}

  Tensor tensor() { return next<Tensor>(); }
  std::optional<Tensor> optional_tensor() { return next<std::optional<Tensor>>(); }
  double number() { return next<double>(); }
  int64_t integer() { return next<int64_t>(); }
  bool flag() { return next<bool>(); }

  bool empty() const { return at_ == end_; }

 private:
  template <class T>
  T next() {
    STD_TORCH_CHECK(!empty(), "the schema has fewer arguments than the operator reads");
    return torch::stable::detail::to<T>(*at_++);
  }

  const StableIValue* at_;
  const StableIValue* end_;
};

// `run`, from what Arguments reads of a Stack to a tuple of tensors, as the dispatcher calls it.
template <class Arguments, auto run>
void boxed(StableIValue* values, uint64_t arguments, uint64_t /*results*/) {
  Stack stack(values, arguments);
  const Arguments read(stack);
  STD_TORCH_CHECK(stack.empty(), "the schema has more arguments than the operator reads");
  std::apply([&](const auto&... results) { ((*values++ = torch::stable::detail::from(results)), ...); }, run(read));
}

}  // namespace merc

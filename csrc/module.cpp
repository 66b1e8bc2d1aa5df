// The Python module merc_kernels._C: importing it registers the operators; `build` tells how it was compiled.

#include <pybind11/pybind11.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/version.h>

#include <optional>
#include <string>
#include <tuple>

#include "cpu/isa.h"
#include "focal_contrastive/cpu/operator.h"
#include "kd_divergence/cpu/operator.h"

#ifndef MERC_TORCH_TARGET
#error "MERC_TORCH_TARGET is set by setup.py"
#endif

namespace {

using merc::Tensor;

// The arguments of a Python call, read one by one like a Stack. Tensors come and go as the handles of torch._C._aoti,
// each owned by whoever receives it; None stands for no tensor.
class PythonArguments {
 public:
  explicit PythonArguments(const pybind11::args& arguments) : arguments_(arguments) {}

  Tensor tensor() { return owned(next()); }
  std::optional<Tensor> optional_tensor() {
    const pybind11::handle handle = next();
    return handle.is_none() ? std::nullopt : std::optional(owned(handle));
  }
  double number() { return next().cast<double>(); }
  int64_t integer() { return next().cast<int64_t>(); }
  bool flag() { return next().cast<bool>(); }

 private:
  static Tensor owned(pybind11::handle handle) { return Tensor(static_cast<AtenTensorHandle>(handle.cast<void*>())); }

  pybind11::handle next() {
    PyObject* argument = PyTuple_GetItem(arguments_.ptr(), at_++);
    if (argument == nullptr) {
      throw pybind11::error_already_set();
    }
    return argument;
  }

  const pybind11::args& arguments_;
  Py_ssize_t at_ = 0;
};

void* handle_of(const Tensor& tensor) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.get(), &handle));
  return handle;
}

// An operator on CPU tensors without the dispatcher, whose boxing of so many arguments takes longer than small losses.
template <class Arguments, auto run>
auto direct(const pybind11::args& arguments) {
  PythonArguments python(arguments);
  const Arguments read(python);
  const pybind11::gil_scoped_release released;
  return std::apply([](const auto&... results) { return std::make_tuple(handle_of(results)...); }, run(read));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  pybind11::dict build;
  build["compiler"] = __VERSION__;
#ifdef MERC_CUDA
  build["cuda"] = MERC_CUDA;
  build["cuda_archs"] = MERC_CUDA_ARCHS;
#else
  build["cuda"] = pybind11::none();
  build["cuda_archs"] = pybind11::none();
#endif
  build["torch"] = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
  build["torch_target"] = MERC_TORCH_TARGET;
  m.attr("build") = build;

  static constexpr const char* kIsas[] = {"plain", "avx2", "avx512"};
  m.def("isa", [] { return kIsas[static_cast<int>(merc::cpu::isa())]; }, "The instruction set of the CPU kernels.");
  m.def(
      "set_isa",
      [](const std::string& name) {
        for (int i = 0; i <= static_cast<int>(merc::cpu::best_isa()); ++i) {
          if (name == kIsas[i]) {
            merc::cpu::isa() = static_cast<merc::cpu::Isa>(i);
            return true;
          }
        }
        return false;
      },
      "Choose it, for tests; False where this machine cannot run it.");
  m.def(
      "kd_divergence", direct<merc::kd_divergence::ForwardArguments, merc::kd_divergence::cpu::forward>,
      "The operator merc::kd_divergence on CPU tensors, given and returned as handles of torch._C._aoti.");
  m.def(
      "focal_contrastive_with_gradients",
      direct<merc::focal_contrastive::BothArguments, merc::focal_contrastive::cpu::forward_and_backward>,
      "merc::focal_contrastive_with_gradients, likewise.");
}

// The Python module merc_kernels._C: importing it registers the operators; `build` tells how it was compiled.

#include <pybind11/pybind11.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/version.h>

#include <optional>
#include <string>
#include <tuple>

#include "focal_contrastive/cpu/operator.h"
#include "cpu/isa.h"
#include "kd_divergence/cpu/operator.h"

#ifndef MERC_TORCH_TARGET
#error "MERC_TORCH_TARGET is set by setup.py"
#endif

namespace {

using torch::stable::Tensor;

// Tensors come and go as the handles of torch._C._aoti, each owned by who receives it; a null one is None.
Tensor tensor_of(void* handle) { return Tensor(static_cast<AtenTensorHandle>(handle)); }

std::optional<Tensor> optional_of(void* handle) {
  return handle ? std::optional<Tensor>(tensor_of(handle)) : std::nullopt;
}

void* handle_of(const Tensor& tensor) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.get(), &handle));
  return handle;
}

// The operators on CPU tensors without the dispatcher, whose boxing of so many arguments takes longer than small losses.
std::tuple<void*, void*, void*> kd_divergence(
    void* student, void* teacher, void* row_temperature, void* labels, void* row_weights, double temperature,
    int64_t direction, double beta, double ce_weight, bool scale_by_t2, int64_t ignore_index, int64_t reduction,
    int64_t save) {
  const auto [loss, divisor, saved] = merc::cpu::kd_divergence(
      tensor_of(student), tensor_of(teacher), optional_of(row_temperature), optional_of(labels),
      optional_of(row_weights), temperature, direction, beta, ce_weight, scale_by_t2, ignore_index, reduction, save);
  return {handle_of(loss), handle_of(divisor), handle_of(saved)};
}

std::tuple<void*, void*, void*, void*, void*> focal_contrastive_with_gradients(
    void* embeddings, void* labels, void* prototypes, void* refs, void* ref_labels, void* class_weights,
    void* temperature_tensor, double temperature, double gamma, int64_t focal, bool detach_focal,
    bool prototype_anchors, bool ref_only, bool normalize, int64_t ignore_index, int64_t reduction,
    bool embeddings_grad, bool prototypes_grad, bool refs_grad, bool temperature_grad) {
  const auto [loss, of_embeddings, of_prototypes, of_refs, of_temperature] =
      merc::cpu::focal_contrastive_with_gradients(
          tensor_of(embeddings), tensor_of(labels), optional_of(prototypes), optional_of(refs),
          optional_of(ref_labels), optional_of(class_weights), optional_of(temperature_tensor), temperature, gamma,
          focal, detach_focal, prototype_anchors, ref_only, normalize, ignore_index, reduction, embeddings_grad,
          prototypes_grad, refs_grad, temperature_grad);
  return {
      handle_of(loss), handle_of(of_embeddings), handle_of(of_prototypes), handle_of(of_refs),
      handle_of(of_temperature)};
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
      "kd_divergence", kd_divergence, pybind11::call_guard<pybind11::gil_scoped_release>(),
      "The operator merc::kd_divergence on CPU tensors, given and returned as handles of torch._C._aoti.");
  m.def(
      "focal_contrastive_with_gradients", focal_contrastive_with_gradients,
      pybind11::call_guard<pybind11::gil_scoped_release>(), "merc::focal_contrastive_with_gradients, likewise.");
}

// The Python module merc_kernels._C: importing it registers the operators; `build` tells how it was compiled.

#include <pybind11/pybind11.h>

#include <torch/headeronly/version.h>

#include <string>

#include "cpu/isa.h"

#ifndef MERC_TORCH_TARGET
#error "MERC_TORCH_TARGET is set by setup.py"
#endif

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

  static constexpr const char* kIsas[] = {"plain", "avx2", "avx512", "amx"};
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
}

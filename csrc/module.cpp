// The Python module merc_kernels._C: importing it registers the operators; `build` tells how it was compiled.

#include <pybind11/pybind11.h>

#include <torch/headeronly/version.h>

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
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  build["vector_bits"] = __builtin_cpu_supports("avx512bw") ? 512 : __builtin_cpu_supports("avx2") ? 256 : 128;
#else
  build["vector_bits"] = pybind11::none();
#endif
  m.attr("build") = build;
}

"""The extension module merc_kernels._C, and nothing else; the rest stands in pyproject.toml.

Built where there is a C++ compiler and torch is installed already (pip install --no-build-isolation); else the
package is pure Python. MERC_CUDA=1 compiles the CUDA sources as well, against a CUDA build of torch: on request, for
they have not run on a GPU yet. TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured; whether there is a GPU is never asked.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

TORCH_TARGET = "2.11"  # the oldest torch whose stable ABI the module needs
CXX_FLAGS = ["-std=c++20", "-O3", "-fopenmp-simd", "-fvisibility=hidden", "-Wno-psabi"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]  # let branches become vector selects; change no result
CUDA_ARCHS = "8.0;9.0+PTX"


def compiler_problem() -> str | None:
    """Why the extension cannot be built, or None."""
    if os.name != "posix":
        return "the extension is built on Linux and macOS only"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "no C++ compiler was found"
    for module in ("torch", "pybind11"):
        try:
            __import__(module)
        except ImportError:
            return f"{module} is not installed where the build runs: install it, then use pip's --no-build-isolation"
    return None


def with_cuda() -> bool:
    """Whether the CUDA sources are compiled: on request."""
    wanted = os.environ.get("MERC_CUDA") == "1"
    if wanted and not shutil.which("nvcc"):
        raise SystemExit("merc-kdc: MERC_CUDA=1 needs nvcc, and none was found on PATH")
    return wanted


def extension():
    """The extension module, as torch's build helpers want it."""
    import pybind11
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    major, minor = map(int, TORCH_TARGET.split("."))
    macros = [
        ("TORCH_TARGET_VERSION", f"0x{major:02x}{minor:02x}000000000000"),
        ("MERC_TORCH_TARGET", f'"{TORCH_TARGET}"'),
    ]
    sources = ["csrc/module.cpp", "csrc/library.cpp", *map(str, sorted(Path("csrc/cpu").glob("*.cpp")))]
    flags = {"cxx": CXX_FLAGS}
    cuda = with_cuda()
    if cuda:
        from torch.utils.cpp_extension import CUDA_HOME

        archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHS)
        macros += [
            ("MERC_CUDA", f'"{Path(CUDA_HOME).resolve().name}"'),
            ("MERC_CUDA_ARCHS", f'"{archs}"'),
            ("USE_CUDA", "1"),
        ]
        sources += map(str, sorted(Path("csrc/cuda").glob("*.cu")))
        flags["nvcc"] = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-lineinfo"]
    return (CUDAExtension if cuda else CppExtension)(
        "merc_kernels._C",
        sources,
        include_dirs=[pybind11.get_include()],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=["-Wl,--as-needed"] if sys.platform == "linux" else [],
    )


problem = compiler_problem()
if problem:
    print(f"merc-kdc: building without compiled kernels: {problem}", file=sys.stderr)
    setup()
else:
    from torch.utils.cpp_extension import BuildExtension

    setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})

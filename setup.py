"""The extension module merc_kernels._C, and nothing else; the rest stands in pyproject.toml.

Built where there is a C++ compiler and torch is installed already (pip install --no-build-isolation); else the
package is pure Python. The CUDA sources are compiled as well where nvcc is found and the installed torch has the same
major version of CUDA. MERC_FORCE_CUDA=1 compiles them, also against a torch without CUDA, or fails saying why;
MERC_CUDA=0 leaves them out. TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured; whether there is a GPU is never asked.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

TORCH_TARGET = "2.11"  # the oldest torch whose stable ABI the module needs
CXX_FLAGS = ["-std=c++20", "-O3", "-fopenmp-simd", "-fvisibility=hidden", "-Wno-psabi"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]  # let branches become vector selects; change no result
CUDA_ARCHS = "8.0;9.0+PTX"
CUDA_USUALLY = "/usr/local/cuda"


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


def cuda_toolkit() -> tuple[Path, str] | None:
    """Where CUDA lies and its version; None where it is not to be compiled."""
    import torch

    if os.environ.get("MERC_CUDA") == "0":
        return None
    forced = os.environ.get("MERC_FORCE_CUDA") == "1"
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parents[1]]
    homes = [Path(place) for place in [*places, CUDA_USUALLY] if place]
    home = next(
        (home for home in homes if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists()), None
    )
    if home is None:
        if forced:
            raise SystemExit("merc-kdc: MERC_FORCE_CUDA=1 needs nvcc: put it on PATH, or set CUDA_HOME")
        return None
    if torch.version.cuda is None and not forced:
        return None
    told = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release (\d+\.\d+)", told)[1]
    if torch.version.cuda is not None:
        from packaging.version import Version

        if Version(version).major != Version(torch.version.cuda).major:
            problem = f"nvcc has CUDA {version}, and the installed torch {torch.version.cuda}"
            if forced:
                raise SystemExit(f"merc-kdc: MERC_FORCE_CUDA=1: {problem}")
            print(f"merc-kdc: building without CUDA: {problem}", file=sys.stderr)
            return None
    return home, version


def extension():
    """The extension module, as torch's build helpers want it."""
    import pybind11
    import torch
    from torch.utils import cpp_extension

    major, minor = map(int, TORCH_TARGET.split("."))
    macros = [
        ("TORCH_TARGET_VERSION", f"0x{major:02x}{minor:02x}000000000000"),
        ("MERC_TORCH_TARGET", f'"{TORCH_TARGET}"'),
    ]
    sources = ["csrc/module.cpp", "csrc/library.cpp", *map(str, sorted(Path("csrc").glob("*/cpu/*.cpp")))]
    includes, folders, libraries = [pybind11.get_include()], [], []
    flags = {"cxx": CXX_FLAGS}
    link_flags = ["-Wl,--as-needed"] if sys.platform == "linux" else []
    if toolkit := cuda_toolkit():
        home, version = toolkit
        cpp_extension.CUDA_HOME = str(home)  # torch without CUDA does not look for it
        archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHS)
        macros += [("MERC_CUDA", f'"{version}"'), ("MERC_CUDA_ARCHS", f'"{archs}"'), ("USE_CUDA", "1")]
        sources += map(str, sorted(Path("csrc").glob("*/cuda/*.cu")))
        flags["nvcc"] = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-lineinfo"]
        includes.append(str(home / "include"))
        folders.append(str(home / "lib64"))
        libraries = ["cudart_static", "rt", "dl"]
        if torch.version.cuda is None:  # see weak.h; libtorch brings libtorch_cuda along, beside a torch that has it
            flags["nvcc"] += ["-include", str(Path("csrc/cuda/weak.h").resolve())]
            link_flags = ["-Wl,--no-as-needed", "-ltorch"]
        else:
            libraries += ["c10_cuda", "torch_cuda"]
    return cpp_extension.CppExtension(
        "merc_kernels._C",
        sources,
        include_dirs=includes,
        library_dirs=folders,
        libraries=libraries,
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=link_flags,
    )


problem = compiler_problem()
if problem and os.environ.get("MERC_FORCE_CUDA") == "1":
    raise SystemExit(f"merc-kdc: MERC_FORCE_CUDA=1: {problem}")
if problem:
    print(f"merc-kdc: building without compiled kernels: {problem}", file=sys.stderr)
    setup()
else:
    from torch.utils.cpp_extension import BuildExtension

    setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})

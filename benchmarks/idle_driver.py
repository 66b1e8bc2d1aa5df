# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call,no-untyped-def,misc"
"""Triton's own binder, compiler and launcher for an sm_90, with a libcuda that does nothing: no GPU, no values."""

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

PROCESSORS = 132


class _Driver(nvidia.CudaDriver):
    def __init__(self):
        self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
        self.get_current_device, self.get_current_stream = (lambda: 0), (lambda device: 0)

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def _length(count: int, device: torch.device) -> int:  # as on a GPU
    return count


def _processors(device: torch.device) -> int:
    return PROCESSORS


@contextmanager
def idle_driver() -> Iterator[Callable[[], int]]:
    """Calls inside launch for nothing, on CPU tensors; gives how often that was done so far. Needs gcc, and Linux."""
    from merc_kernels.focal_contrastive.triton import call, launch, source_gradient

    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "libcuda.so.1")
        headers = Path(nvidia.__file__).parent / "include"
        command = ["gcc", "-shared", "-fPIC", "-w", f"-I{headers}", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
        subprocess.run([*command, str(Path(__file__).with_suffix(".c"))], check=True)
        stub = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # dlopen of the name finds it from now on
        stub.launches_so_far.restype = ctypes.c_long
        surroundings = {"TRITON_CACHE_DIR": f"{folder}/cache", "TRITON_LIBCUDA_PATH": folder}
        with (
            mock.patch.dict(os.environ, surroundings),
            mock.patch.object(triton.runtime.driver, "_active", _Driver()),
            mock.patch.object(launch, "length", _length),
            mock.patch.object(source_gradient, "length", _length),
            mock.patch.object(call, "processors", _processors),
        ):
            yield stub.launches_so_far

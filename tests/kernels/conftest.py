"""What the tests of the kernels share."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels import interpreted

ROOT = Path(__file__).parents[2]
TORCH = Path(torch.__file__).parent
INCLUDES = ["-isystem", str(TORCH / "include"), "-isystem", str(TORCH / "include/torch/csrc/api/include")]
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"


@pytest.hookimpl(trylast=True)  # of what the marker leaves
def pytest_collection_modifyitems(config, items):
    if share := os.environ.get(interpreted.SHARE):
        kept = interpreted.kept(items, share)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(scope="session")
def on_host(once):
    """The CUDA operators of csrc for CPU tensors, each thread of a block a fiber.

    ``cuda_on_host`` stands in for the CUDA headers, launch.cuh and tensor_core.cuh; everything else is the shipped
    source. It cannot show what only a GPU does: its approximate exponential, the rounding of its tensor cores,
    its memory order, its speed.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    folder = once("cuda_on_host", lambda folder: _compile_on_host(compiler, folder))
    torch.ops.load_library(str(folder / "on_host.so"))
    return torch.ops.merc_on_host


def _compile_on_host(compiler: str, folder: Path, *flags: str) -> None:
    shutil.copytree(ROOT / "csrc", folder, dirs_exist_ok=True)
    shutil.copytree(Path(__file__).parent / "cuda_on_host", folder, dirs_exist_ok=True)
    for name in ("cuda_bf16.h", "cuda_fp16.h"):
        (folder / "cuda" / name).touch()
    sources = [*sorted(folder.glob("*/cuda/*.cu")), folder / "library.cpp"]
    command = [compiler, "-std=c++20", "-O2", "-w", "-fPIC", *flags, "-include", str(folder / "cuda/cuda.h")]
    command += [f"-I{folder / 'cuda'}", *INCLUDES, TARGET]

    def compiled(shipped: Path) -> str:
        text = shipped.read_text().replace("(merc, CUDA, m)", "(merc_on_host, CPU, m)")
        source = shipped.with_suffix(".cpp")
        source.write_text(text.replace("(merc, m)", "(merc_on_host, m)"))
        _run([*command, "-c", str(source), "-o", str(source.with_suffix(".o"))])
        return str(source.with_suffix(".o"))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    linked = [compiler, "-shared", *flags, *objects, "-o", str(folder / "on_host.so")]
    _run([*linked, f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"])


def _run(command: list[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="session", autouse=True)
def _hastened(pytestconfig):
    """The interpreter, where a process has one, loses no time; the full grid has it as it comes."""
    if os.environ.get("TRITON_INTERPRET") != "1" or pytestconfig.option.markexpr == "full":
        yield
        return
    pytest.importorskip("triton")
    from tests.kernels import interpreter

    with pytest.MonkeyPatch.context() as patch:
        try:
            interpreter.hasten(patch)
        except AttributeError:  # another Triton, with other names inside
            patch.undo()
        yield


@pytest.fixture
def _rounded(monkeypatch):
    """The interpreter rounds as a GPU does.

    It cuts float32 to bfloat16, where a GPU rounds to the nearest; and how it rounds a product of float32 depends on
    the shape of the tile, where on a GPU each element is a chain of fused multiplications and additions.
    """
    numpy = pytest.importorskip("numpy")
    triton = pytest.importorskip("triton")
    convert = triton.runtime.interpreter._convert_float
    builder = triton.runtime.interpreter.InterpreterBuilder
    product = builder.create_dot

    def rounded(values, source, target, rounding_mode):
        if (source, target) != (triton.language.float32, triton.language.bfloat16):
            return convert(values, source, target, rounding_mode)
        return torch.from_numpy(values.copy()).bfloat16().view(torch.uint16).numpy()

    def chained(self, a, b, total, *options):
        if total.dtype.scalar != triton.language.float32:
            return product(self, a, b, total, *options)
        sums = numpy.broadcast_to(total.data, (a.data.shape[0], b.data.shape[1]))
        for column, row in zip(a.data.T.astype(float), b.data.astype(float), strict=True):
            sums = (sums + numpy.multiply.outer(column, row)).astype(numpy.float32)
        return triton.runtime.interpreter.TensorHandle(sums, total.dtype.scalar)

    monkeypatch.setattr(triton.runtime.interpreter, "_convert_float", rounded)
    monkeypatch.setattr(builder, "create_dot", chained)


@pytest.fixture
def _poisoned(monkeypatch):
    """Fresh memory holds NaN, and numbers beyond every label."""
    new_empty = Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        fresh = new_empty(self, *args, **kwargs)
        return fresh.fill_(torch.nan if fresh.is_floating_point() else 1 << (40 if fresh.itemsize == 8 else 30))

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


@pytest.fixture
def _truncated(monkeypatch):
    """Products take tf32 and cut their factors to it, as tensor cores do; the interpreter's and `torch.bmm`."""
    triton = pytest.importorskip("triton")
    interpreter = triton.runtime.interpreter
    builder, bmm = interpreter.InterpreterBuilder, torch.bmm
    product = builder.create_dot

    def cut(x):
        return (x.contiguous().view(torch.int32) & -0x2000).view(torch.float32)

    def of_cut(self, a, b, *options):
        pair = (interpreter.TensorHandle(cut(torch.from_numpy(x.data.copy())).numpy(), x.dtype.scalar) for x in (a, b))
        return product(self, *pair, *options)

    monkeypatch.setattr(builder, "create_dot", of_cut)
    monkeypatch.setattr(torch, "bmm", lambda a, b, **options: bmm(cut(a), cut(b), **options))
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before

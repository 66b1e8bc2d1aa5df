"""The CUDA sources without a GPU: all compiled for real architectures; the divergence on the CPU, thread by thread."""

import ast
import functools
import itertools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from merc_kernels import reference
from tests import cores
from tests.kernels import grid, spoiled
from tests.kernels.conftest import INCLUDES, ROOT, TARGET
from tests.numerics import assert_accurate, error

SOURCES = sorted((ROOT / "csrc").glob("*/cuda/*.cu"))


class Kernel(NamedTuple):
    name: str
    arch: str
    registers: int
    stack: int
    spilled: int
    shared: int  # static


LEAST_SHARED = 99 << 10  # bytes that a block may have on sm_86, 89 and 120
OF_HEADERS = 64  # bytes of global memory that CUDA's own headers declare, at most
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def nvcc_flags() -> list[str]:
    """Those of setup.py."""
    found = re.search(r'flags\["nvcc"\] = (\[.*?\])', (ROOT / "setup.py").read_text(), re.DOTALL)
    assert found
    return ast.literal_eval(found[1])


@functools.cache
def compiled(source: Path, archs: tuple[str, ...], out: Path) -> list[Kernel]:
    command = ["nvcc", *nvcc_flags(), *INCLUDES, TARGET, "-DUSE_CUDA", "-Xcompiler", "-fPIC", "-Xptxas", "-v"]
    for of, later in itertools.groupby(
        archs, lambda arch: 80 if int(arch) < 90 else 90
    ):  # setup.py's list, and its PTX
        command.append(f"-gencode=arch=compute_{of},code=[{','.join(f'sm_{arch}' for arch in later)}]")
    command += ["--threads", str(cores.of_a_worker()), "-c", str(source), "-o", str(out / f"{source.stem}.o")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr, run.stderr
    kept = re.findall(r"(\d+) bytes gmem", run.stderr)
    assert len(kept) == len(archs)
    assert max(map(int, kept)) <= OF_HEADERS, "launches of any stream share what outlives them"
    return [
        Kernel(
            x["name"],
            x["arch"],
            int(x["registers"]),
            int(x["stack"]),
            int(x["stores"]) + int(x["loads"]),
            int(x["shared"] or 0),
        )
        for x in REPORT.finditer(run.stderr)
    ]


def of_its_tiles(source: Path) -> int:
    """Bytes of the largest dynamic shared memory: two tiles of 64 rows and one of scores (tile.cuh)."""
    if source.parts[-3] != "focal_contrastive":
        return 0
    return max(2 * 64 * (512 + 16) + 64 * (64 + 8) * 4, 2 * 64 * (256 + 32) + 64 * (64 + 4) * 8)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.parts[-3])
@pytest.mark.full  # make archs
@pytest.mark.parametrize("archs", [("80", "86", "89", "90", "100", "120")], ids="-".join)
def test_compiles_without_spills(source, archs, tmp_path):
    kernels = compiled(source, archs, tmp_path)
    sys.stdout.writelines(
        f"sm_{k.arch} {k.registers:3} registers, {k.spilled} bytes spilled: {k.name}\n" for k in kernels
    )
    assert {k.arch for k in kernels} == set(archs)
    assert not [k for k in kernels if k.stack or k.spilled]
    assert max(k.shared for k in kernels) + of_its_tiles(source) <= LEAST_SHARED


DIRECTIONS = ("forward", "reverse", "js")
REDUCTIONS = ("none", "sum", "mean", "batchmean")
DEFAULTS = {"temperature": 2.0, "direction": "forward", "beta": 0.5, "labels": None, "ce_weight": 0.0}
DEFAULTS |= {"row_weights": None, "scale_by_t2": True, "ignore_index": -100, "reduction": "batchmean"}
Values = list[Tensor]  # loss, student's gradient, teacher's gradient


def accumulate(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def fused(operators, student: Tensor, teacher: Tensor, upstream: Tensor, save: int, **options) -> Values:
    options = DEFAULTS | options
    temperature, weights, dtype = options["temperature"], options["row_weights"], accumulate(student, teacher)
    a_row = isinstance(temperature, Tensor)
    arguments = (
        temperature.to(dtype) if a_row else None,
        options["labels"],
        None if weights is None else weights.to(dtype),
        1.0 if a_row else temperature,
        DIRECTIONS.index(options["direction"]),
        options["beta"],
        options["ce_weight"],
        options["scale_by_t2"],
        options["ignore_index"],
    )
    reduction = {"none": 0, "sum": 1, "batchmean": 3}[options["reduction"]]
    loss, divisor, saved = operators.kd_divergence(student, teacher, *arguments, reduction, save)
    if save == 2:
        return [loss, (saved * upstream).to(saved.dtype)]
    return [loss, *operators.kd_divergence_backward(upstream, divisor, saved, student, teacher, *arguments, True, True)]


def plain(student: Tensor, teacher: Tensor, upstream: Tensor, doubled: bool, **options) -> Values:
    leaves = [(x.double() if doubled else x).detach().requires_grad_() for x in (student, teacher)]
    if (labels := options.get("labels")) is not None:  # out of range: ignored, as on a GPU
        classes = student.shape[-1]
        options["labels"] = labels.masked_fill((labels < 0) | (labels >= classes), options.get("ignore_index", -100))
    if doubled:
        options = {k: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in options.items()}
    loss = reference.kd_divergence(*leaves, teacher_grad=True, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, upstream.to(loss.dtype), materialize_grads=True)]


def check(operators, student: Tensor, teacher: Tensor, save: int = 1, **options) -> None:
    rows = student.shape[:-1] if options.get("reduction") == "none" else ()
    upstream = torch.linspace(0.5, 1.5, math.prod(rows)).view(rows).to(accumulate(student, teacher))
    truth = plain(student, teacher, upstream, doubled=True, **options)
    eager = plain(student, teacher, upstream, doubled=False, **options)
    ours = fused(operators, student, teacher, upstream, save, **options)
    again = fused(operators, student, teacher, upstream, save, **options)
    for value, repeated, of_torch, exact in zip(ours, again, eager, truth, strict=False):
        assert value.dtype == of_torch.dtype
        assert_accurate(value, of_torch, exact)
        assert torch.equal(value, repeated)


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * 3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [1, 2, 7, 9, 33, 64, 65, 257, 1041, 2500])
def test_widths(on_host, width, dtype):
    rows = 131 if width < 9 else 5
    for direction in DIRECTIONS:
        check(on_host, logits(rows, width, dtype=dtype), logits(rows, width, dtype=dtype), direction=direction)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float64, torch.float16)], ids=str)
@pytest.mark.parametrize("width", [5, 21, 139])
@pytest.mark.parametrize("shared", [True, False])
def test_options(on_host, width, dtypes, shared):
    groups, rows = 3, 19
    labels = torch.randint(0, width, (groups, rows))
    labels[:, 1], labels[:, 2], labels[:, 3] = -100, width + 5, -3
    student = logits(groups, rows, width, dtype=dtypes[0])
    student[:, 1:4] = math.nan
    teacher = logits(*(() if shared else (groups,)), rows, width, dtype=dtypes[1])
    options = {"labels": labels, "ce_weight": 0.4, "beta": 0.3, "temperature": torch.rand(rows) + 0.5}
    options |= {"row_weights": torch.rand(groups, rows), "scale_by_t2": shared}
    for direction, (reduction, save) in itertools.product(
        DIRECTIONS, [("none", 1), ("sum", 1), ("batchmean", 1), ("sum", 2), ("batchmean", 2)]
    ):
        check(on_host, student, teacher, save, direction=direction, reduction=reduction, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [7, 301])
def test_strides_and_alignment(on_host, width, dtype):
    base = logits(2, 9, width + 9, dtype=dtype)
    teachers = [
        base[0, :, 1 : 1 + width],
        base[0].T.contiguous().T[:, 2 : 2 + width],
        base.transpose(0, 1).contiguous().transpose(0, 1)[:, :, 3 : 3 + width],
        base[1, :1, :width].expand(9, width),
    ]
    for offset, teacher in itertools.product((0, 1, 2, 5), teachers):
        student = base[:, :, offset : offset + width]
        check(on_host, student, teacher)
        check(on_host, student, teacher, 2, direction="js")


@pytest.mark.parametrize("width", [40, 1500])
def test_masks(on_host, width):
    student, teacher = logits(6, width), logits(6, width)
    head = torch.arange(width) < width // 2
    some = torch.rand(6, width) < 0.4
    some[:, 0] = False
    for mask, fill, direction in itertools.product((head, ~head, some), (-math.inf, -3.3e38), DIRECTIONS):
        check(on_host, student.masked_fill(mask, fill), teacher.masked_fill(mask, fill), direction=direction)
    one_sided = fused(on_host, student.masked_fill(head, -math.inf), teacher, torch.ones(6), 1, reduction="none")
    assert one_sided[0].isposinf().all()
    assert one_sided[1].isfinite().all()


@pytest.mark.parametrize("width", [40, 1500])
def test_large_logits(on_host, width):
    """Divergences of thousands: their gradients are right to a rounding of the divergence."""
    student, teacher = logits(6, width), logits(6, width)
    one_hot = torch.zeros(6, width).index_fill(1, torch.tensor([width // 3]), 1000.0)
    pairs = [(student, one_hot), (student, one_hot * 20 - 1e4), (student * 3e3, teacher * 3e3)]
    pairs += [(student + 1e4, teacher - 1e4)]
    for pair, direction in itertools.product(pairs, DIRECTIONS):
        truth = plain(*pair, torch.ones(6), doubled=True, direction=direction, reduction="none")
        ours = fused(on_host, *pair, torch.ones(6), 1, direction=direction, reduction="none")
        for value, exact in zip(ours, truth, strict=True):
            assert error(value, exact) <= 1e-6 * max(1.0, float(truth[0].max()))


@pytest.mark.parametrize("width", [5, 200])
def test_nan_stays_in_its_row_and_is_not_lost(on_host, width):
    for direction, of_student in itertools.product(DIRECTIONS, (True, False)):
        pair = [logits(6, width), logits(6, width)]
        pair[not of_student][2, width // 2] = math.nan
        loss, student_grad, teacher_grad = fused(
            on_host, *pair, torch.ones(6), 1, direction=direction, reduction="none"
        )
        assert loss.isnan().tolist() == [row == 2 for row in range(6)]
        for gradient in (student_grad, teacher_grad):
            assert gradient.isnan().any(-1).tolist() == [row == 2 for row in range(6)]


@pytest.mark.parametrize(("width", "dtype"), grid.halved([5, 200], [torch.float64, torch.float32, torch.float16]))
def test_a_spoilt_row_is_nan(on_host, width, dtype):
    cases = [("none", 1, True), ("none", 1, False), ("batchmean", 2, True), ("sum", 2, False)]
    for direction, (reduction, save, labelled) in itertools.product(DIRECTIONS, cases):
        options = {"direction": direction, "reduction": reduction}
        options |= {"labels": spoiled.LABELS, "ce_weight": 0.5} if labelled else {}
        upstream = torch.ones(spoiled.ROWS if reduction == "none" else ()).to(
            accumulate(*[torch.empty(0, dtype=dtype)] * 2)
        )
        spoiled.check(
            lambda *pair: fused(on_host, *pair, upstream, save, **options),  # noqa: B023
            width,
            dtype,
            labelled,
        )


@pytest.mark.parametrize("save", [1, 2])
@pytest.mark.parametrize("width", [7, 300])
def test_nothing_to_count(on_host, width, save):
    nothing = torch.full((6, width), math.nan)
    ignored = {"labels": torch.full((6,), -100), "ce_weight": 1.0, "row_weights": torch.full((6,), math.nan)}
    for values in (
        fused(on_host, nothing, nothing, torch.ones(()), save, **ignored),
        fused(on_host, torch.zeros(0, width), torch.zeros(0, width), torch.ones(()), save),
        fused(on_host, torch.zeros(0, 4, width), torch.zeros(4, width), torch.ones(()), save),
    ):
        assert all((value == 0).all() for value in values)


@pytest.mark.parametrize("width", [9, 200])
def test_offsets_beyond_two_to_the_31(on_host, tmp_path, width):
    apart = 2**30
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2 * (2 * apart + width))
    storage = torch.from_file(str(path), shared=True, size=2 * apart + width, dtype=torch.bfloat16)
    far, near = storage.as_strided((3, width), (apart, 1)), logits(3, width, dtype=torch.bfloat16)
    far.copy_(logits(3, width))
    groups = far.as_strided((3, 1, width), (apart, width, 1))
    for pair, direction in itertools.product(((far, near), (near, far), (groups, near[:1])), DIRECTIONS):
        for save in (1, 2):
            there = fused(on_host, *pair, torch.ones(()), save, direction=direction)
            here = fused(on_host, *(x.clone().contiguous() for x in pair), torch.ones(()), save, direction=direction)
            assert all(torch.equal(one, other) for one, other in zip(there, here, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("shape", [(600_000, 1), (20_000, 65)], ids=str)
def test_more_rows_than_a_grid_takes_at_once(on_host, shape):
    student, teacher = logits(*shape), logits(*shape)
    loss, gradient, _ = fused(on_host, student, teacher, torch.ones(()), 1)
    exact_loss, exact_gradient, _ = plain(student, teacher, torch.ones(()), doubled=True)
    assert error(loss, exact_loss) <= 1e-6 * float(exact_loss)
    assert error(gradient, exact_gradient) <= 1e-6 * float(exact_gradient.abs().max())

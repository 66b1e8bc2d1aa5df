"""kd_divergence: T² KL(softmax(t / T) | softmax(s / T)) a row, averaged over the rows; its peers, cells, inputs, truth.

Logits of standard deviation 3, a temperature of 2. The floor: two logits are read and one gradient written; forward
alone is two thirds of it. Backward alone has none: where the gradient is made forward, nothing is left to do.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import merc_kernels
from benchmarks.cell import Cell, Floor, Problem, Provider
from benchmarks.providers import Loss, compiled, optional, ours
from merc_kernels import reference

TEMPERATURE = 2.0
CHUNK = 1 << 22  # elements of the logits that the chunked form takes at a time
BLOCK = 1 << 23  # and the truth
_FAST = ("merc", "merc:cpu", "eager", "chunked")
_PLAIN = ("merc", "fused", "eager", "chunked", "liger-kernel")  # compiling takes long


def merc(student: Tensor, teacher: Tensor, formula: str = "", *, backend: str | None) -> Tensor:
    """The operator."""
    return merc_kernels.kd_divergence(student, teacher, temperature=TEMPERATURE, backend=backend)


def eager(student: Tensor, teacher: Tensor, formula: str = "") -> Tensor:
    """What is written everywhere."""
    return summed(student, teacher) / len(student)


def summed(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum over the rows."""
    return F.kl_div(*_sides(student, teacher), reduction="sum") * TEMPERATURE**2


def _sides(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1)


def chunked(student: Tensor, teacher: Tensor, formula: str = "") -> Tensor:
    """Some rows at a time, recomputed in the backward pass: what a careful user would write."""
    step = max(1, CHUNK // student.shape[1])
    total = student.new_zeros(())
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    for s, t in zip(torch.split(student, step), torch.split(teacher, step), strict=True):
        total = total + checkpoint(summed, s, t, **options)
    return total / len(student)


def liger(module: Any, device: str) -> Loss:
    """Liger-Kernel's."""
    if device != "cuda":
        raise ImportError("its kernels run on a GPU only")
    loss = module.LigerKLDIVLoss(reduction="batchmean")
    return lambda student, teacher, formula="": loss(*_sides(student, teacher)) * TEMPERATURE**2


class KDDivergence:
    """The subject."""

    name = "kd_divergence"
    floor_is = "torch.add(student, teacher): two reads and one write"
    limit: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}

    def cells(self, scale: str, device: str) -> list[Cell]:
        """Sizes ascend; on a GPU those that are compiled come last."""
        every = ("forward", "backward", "both")
        if scale == "quick":
            return [_cell(512, 6, seconds=0.2, providers=_PLAIN), _cell(64, 1000, seconds=0.2, providers=_PLAIN)]
        if device == "cpu":
            return [
                _cell(512, 6, passes=every),
                _cell(4096, 7, passes=every),
                _cell(2048, 1000),
                _cell(512, 128256, seconds=2.0, providers=_FAST),
                _cell(2048, 32000, seconds=4.0, providers=(*_FAST, "torch.compile")),
            ]
        sizes = ((512, 6), (4096, 7), (8192, 1000), (8192, 32000), (8192, 128256))
        compiled_too = [(512, 6, "float32"), (8192, 32000, "bfloat16")]
        cells = []
        for size in sorted(((*s, t) for s in sizes for t in ("float32", "bfloat16")), key=compiled_too.__contains__):
            passes = ("both", "graph") if size[1] < 1000 else every
            providers = None if size in compiled_too else _PLAIN
            cells.append(_cell(*size, passes=passes, providers=providers, seconds=0.06))
        return cells

    def providers(self, device: str) -> list[Provider]:
        return [
            *ours(merc, device),
            Provider("eager", eager),
            Provider("torch.compile", compiled(eager)),
            Provider("chunked", chunked),
            optional("liger-kernel", "liger_kernel.transformers.kl_div", lambda module: liger(module, device)),
        ]

    def work(self, cell: Cell) -> float:
        return float(math.prod(cell.sizes.values()))

    def problem(self, cell: Cell, provider: Provider, device: str, rows: int | None = None) -> Problem:
        student, teacher = inputs(cell, device, rows)
        return Problem(provider, cell.formula, student, (teacher,))

    def truth(self, cell: Cell, device: str) -> tuple[float, Tensor | None, int]:
        """The reference in float64, some rows at a time."""
        student, teacher = inputs(cell, device)
        total, gradients = 0.0, []
        step = max(1, BLOCK // cell.sizes["classes"])
        for s, t in zip(torch.split(student.detach(), step), torch.split(teacher, step), strict=True):
            x = s.double().requires_grad_()
            loss = reference.kd_divergence(x, t.double(), temperature=TEMPERATURE, reduction="sum")
            gradients.append(torch.autograd.grad(loss, x)[0])
            total += float(loss.detach())
        return total / len(student), torch.cat(gradients) / len(student), len(student)

    def floor(self, cell: Cell, device: str) -> Floor:
        student, teacher = (logits.detach() for logits in inputs(cell, device))
        return Floor(lambda: torch.add(student, teacher), {"forward": 2 / 3, "both": 1.0, "graph": 1.0})


def inputs(cell: Cell, device: str, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Student and teacher logits, the same tensors for every provider; on a GPU drawn there, for they are large."""
    return _inputs(min(rows or cell.sizes["rows"], cell.sizes["rows"]), cell.sizes["classes"], cell.torch_dtype, device)


@functools.lru_cache(maxsize=1)
def _inputs(rows: int, classes: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    student, teacher = (3 * torch.randn(rows, classes, generator=generator, device=device) for _ in range(2))
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def _cell(rows: int, classes: int, dtype: str = "float32", **options: Any) -> Cell:
    return Cell("kd_divergence", {"rows": rows, "classes": classes}, dtype, **options)


SUBJECT = KDDivergence()

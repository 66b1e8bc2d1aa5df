"""kd_divergence: its cells, inputs and truth. Logits of standard deviation 3, a temperature of 2."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.cell import Cell, Floor, Problem, Provider
from benchmarks.floors import two_reads_one_write
from benchmarks.kd_peers import TEMPERATURE, peers
from merc_kernels import reference

_OURS = ("merc", "merc:cpu", "merc:triton", "merc:cuda", "merc:torch")
_FAST = ("merc", "merc:cpu", "eager", "chunked")
_PLAIN = (*_OURS, "eager", "chunked", "liger-kernel")  # compiling takes long
BLOCK = 1 << 23  # elements that the truth takes at a time


class KDDivergence:
    """The subject."""

    name = "kd_divergence"
    floor_is = "torch.add(student, teacher): two reads and one write"
    limit: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}

    def cells(self, scale: str, device: str) -> list[Cell]:
        """Sizes ascend."""
        if scale == "quick":
            return [_cell(512, 6, seconds=0.2, providers=_PLAIN), _cell(64, 1000, seconds=0.2, providers=_PLAIN)]
        every = ("forward", "backward", "both")
        if device == "cpu":
            return [
                _cell(512, 6, passes=every),
                _cell(4096, 7, passes=every),
                _cell(2048, 1000),
                _cell(512, 128256, seconds=2.0, providers=_FAST),
                _cell(2048, 32000, seconds=4.0, providers=(*_FAST, "torch.compile")),
            ]
        sizes = ((512, 6), (4096, 7), (8192, 1000), (8192, 32000), (8192, 128256))
        compiled_too = [(512, 6, "float32"), (8192, 32000, "bfloat16")]  # last, as it takes long
        others = [(*size, dtype) for size in sizes for dtype in ("float32", "bfloat16")]
        return [
            _cell(
                *cell[:2],
                dtype=cell[2],
                passes=("both", "graph") if cell[1] < 1000 else every,
                providers=None if cell in compiled_too else _PLAIN,
                seconds=0.06,
            )
            for cell in [*(cell for cell in others if cell not in compiled_too), *compiled_too]
        ]

    def providers(self, device: str) -> list[Provider]:
        """Ours and the peers."""
        return peers(device)

    def work(self, cell: Cell) -> float:
        """N C."""
        return float(math.prod(cell.sizes.values()))

    def problem(self, cell: Cell, provider: Provider, device: str, rows: int | None = None) -> Problem:
        """The divergence of student and teacher."""
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
        """Memory traffic."""
        return two_reads_one_write(*inputs(cell, device))


def inputs(cell: Cell, device: str, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Student and teacher logits, the same tensors for every provider; on a GPU drawn there, for they are large."""
    return _inputs(min(rows or cell.sizes["rows"], cell.sizes["rows"]), cell.sizes["classes"], cell.torch_dtype, device)


@functools.lru_cache(maxsize=1)
def _inputs(rows: int, classes: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    student, teacher = (3 * torch.randn(rows, classes, generator=generator, device=device) for _ in range(2))
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def _cell(
    rows: int,
    classes: int,
    *,
    dtype: str = "float32",
    passes: tuple[str, ...] = ("both",),
    providers: tuple[str, ...] | None = None,
    seconds: float = 1.0,
) -> Cell:
    return Cell("kd_divergence", {"rows": rows, "classes": classes}, dtype, "", passes, providers, seconds)


SUBJECT = KDDivergence()

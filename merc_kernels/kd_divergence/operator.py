"""The operators ``merc::kd_divergence`` (C++: cpu, cuda) and ``merc::kd_divergence_triton``, with autograd.

The forward pass saves seven numbers a row, from which the backward pass recomputes; or, where one scalar is wanted of
a student, on the CPU and in Triton, the student's gradient itself: each logit is then read from memory once.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from merc_kernels._shared import backends, checks, torch_private
from merc_kernels._shared.operator import COMPILED, Description, Operator, accumulate, with_gradients
from merc_kernels._shared.options import REDUCTIONS
from merc_kernels._shared.ordinary import ordinary, ordinary_eager
from merc_kernels.kd_divergence.options import GRADIENT, NOTHING, STATS, KDDivergenceOptions

_TRITON = "merc_kernels.kd_divergence.triton.launch"
_IGNORE_INDEX = [column.name for column in KDDivergenceOptions.columns].index("ignore_index")
_PAYS = 1 << 21  # logits from which reading them once saves more than a launch, which counts the rows, costs


def _fake(tensors: Sequence[Any], numbers: Sequence[Any], _: str) -> list[Tensor]:
    student, teacher, *_others = tensors
    *_others, reduction, save = numbers
    dtype = accumulate(student, teacher)
    rows = student.shape[:-1]
    loss = student.new_empty(rows if REDUCTIONS[reduction] == "none" else (), dtype=dtype)
    if save == GRADIENT:
        return [loss, student.new_empty(student.shape)]
    return [loss, student.new_empty((math.prod(rows), 7) if save == STATS else (0,), dtype=dtype)]


def _already(numbers: Sequence[Any], kept: Sequence[Tensor]) -> list[Tensor | None] | None:
    if numbers[-1] == NOTHING:
        raise RuntimeError("merc::kd_divergence: save=0 keeps nothing for a backward pass; call it with save=1")
    return [kept[1], None] if numbers[-1] == GRADIENT else None


DESCRIPTION = Description(
    name="kd_divergence",
    tensors=(
        "Tensor student",
        "Tensor teacher",
        "Tensor? row_temperature",
        "Tensor? labels",
        "Tensor? row_weights",
    ),
    options=KDDivergenceOptions,
    more_numbers=("int save",),
    kept=("saved",),
    differentiable=(0, 1),
    needed=(0, 1, 2, 3, 4),
    needed_by=lambda numbers: (0,) if numbers[-1] == GRADIENT else (0, 1, 2, 3, 4),
    fake=_fake,
    python={"triton": _TRITON},
    already=_already,
)
_operator = Operator(DESCRIPTION)


def _with_gradient(forward: Callable[..., Any]) -> Callable[..., tuple[Tensor, Sequence[Tensor | None]]]:
    def both(
        tensors: Sequence[Any], numbers: Sequence[Any], _: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        loss, _divisor, gradient = forward(*tensors, *numbers)
        return loss, (gradient, None, None, None, None)

    return both


def _scale(gradients: Sequence[Any], grad: Tensor, tensors: Sequence[Any], numbers: Sequence[Any]) -> None:
    importlib.import_module(_TRITON).scale(gradients[0], grad, tensors[3], numbers[_IGNORE_INDEX])


_of_a_student = {"triton": with_gradients(_with_gradient(_operator.forward["triton"]), _scale)}
if backends.extension() is not None:
    _of_a_student["cpu"] = with_gradients(_with_gradient(_operator.forward[COMPILED]))


def kd_divergence(
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    options: KDDivergenceOptions,
    backend: str,
) -> Tensor:
    """`merc_kernels.kd_divergence` on a fused backend, of tensors that were checked."""
    traced = torch_private.tracing_state() is not None  # torch.jit.trace: what it keeps may be called in any way
    if not options.teacher_grad and (teacher.requires_grad or traced):
        teacher = teacher.detach()
    if temperature is not None or row_weights is not None:
        if accumulate(temperature, row_weights) == torch.float64:
            student = student.double()  # as the reference: float64 where any input is
        dtype = accumulate(student, teacher)
        temperature = None if temperature is None else temperature.detach().to(dtype).expand(student.shape[-2])
        row_weights = None if row_weights is None else row_weights.detach().to(dtype)
    tensors = (student, teacher, temperature, labels, row_weights)
    plain = checks.eager(*tensors)
    if traced:
        return _operator(backend, plain, tensors, (*options.numbers, STATS))
    wanted = torch.is_grad_enabled() and (student.requires_grad or teacher.requires_grad)
    if not torch.is_grad_enabled() or (plain and backend == "cpu" and not wanted):
        return _operator(backend, plain, tensors, (*options.numbers, NOTHING))
    # in float16 a gradient for a gradient of 1 would underflow before loss scaling could lift it
    ahead = options.reduction != "none" and not teacher.requires_grad and student.dtype != torch.float16
    if backend == "triton" and labels is not None and options.reduction == "batchmean":
        ahead = ahead and student.numel() >= _PAYS
    if ahead and wanted and backend in _of_a_student:
        if plain:
            return _of_a_student[backend](*ordinary_eager(tensors), (*options.numbers, GRADIENT))
        if backend == "cpu" and torch.compiler.is_compiling():
            return _operator(backend, plain, tensors, (*options.numbers, GRADIENT))
    if wanted:
        tensors = ordinary(*tensors)
    return _operator(backend, plain, tensors, (*options.numbers, STATS))

# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"
"""The divergence of a student from its teacher in Triton: the operators, made of the kernels beside this file."""

import torch
from torch import Tensor

from merc_kernels._shared.operator import accumulate
from merc_kernels._shared.triton.integers import cdiv
from merc_kernels._shared.triton.reduction import REDUCE_BLOCK, REDUCE_WARPS, reduce_kernel
from merc_kernels._shared.triton.scalars import float_options
from merc_kernels.kd_divergence.options import GRADIENT, NOTHING, STATS, KDDivergenceOptions
from merc_kernels.kd_divergence.triton.ahead import COUNT_BLOCK, COUNTS, MOST_PROGRAMS, count_kernel, scale_kernel
from merc_kernels.kd_divergence.triton.backward import backward_kernel
from merc_kernels.kd_divergence.triton.configuration import at_work, blocks, chip, wide_blocks, widest
from merc_kernels.kd_divergence.triton.forward import forward_kernel
from merc_kernels.kd_divergence.triton.rows import SAVED


def _unit_stride(logits: Tensor) -> Tensor:
    return logits if logits.stride(-1) == 1 else logits.contiguous()


class _Call:
    """The arguments that both passes hand to their kernels."""

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor,
        row_temperature: Tensor | None,
        labels: Tensor | None,
        row_weights: Tensor | None,
        options: KDDivergenceOptions,
        backward: bool,
    ) -> None:
        student, teacher = _unit_stride(student), _unit_stride(teacher)
        if student.shape[-1] == 0:
            raise ValueError(f"student: expected at least one class, got {tuple(student.shape)}")
        if labels is None and options.ce_weight != 0:
            raise ValueError("labels: expected a tensor, as ce_weight is not 0")
        labels = None if labels is None else labels.contiguous()
        weights = None if row_weights is None else row_weights.contiguous()
        temperatures = None if row_temperature is None else row_temperature.contiguous()
        self.rows, self.classes = student.shape[-2:]
        self.groups = student.shape[0] if student.dim() == 3 else 1
        self.shared = teacher.dim() == 2 and self.groups > 1
        self.dtype = accumulate(student, teacher)
        self.vectors = all(x % 16 == 0 for x in (self.classes, *_strides(student), *_strides(teacher)))
        self.blocks = blocks(self.classes, self.dtype, backward)
        if not backward and self.classes > widest(self.dtype):
            plain = options.direction == "forward" and options.ce_weight == 0
            narrowest = min(student.itemsize, teacher.itemsize)
            self.blocks = wide_blocks(self.classes, self.dtype, narrowest, plain, self.vectors)
        self.tensors = (student, teacher, temperatures, labels, weights)
        self.shape = (
            *_strides(student),
            *_strides(teacher),
            *(self.rows if x is not None and x.dim() == 2 else 0 for x in (labels, weights)),
            self.rows,
            self.groups,
            self.classes,
        )
        self.ignore_index = options.ignore_index
        self.values = (float_options(options), options.ignore_index)
        self.constants = {
            "DIRECTION": options.direction,
            "CE": options.ce_weight != 0,
            "SCALE_BY_T2": options.scale_by_t2,
            "TILES": cdiv(self.classes, self.blocks.classes),
            "BLOCK_N": self.blocks.rows,
            "BLOCK_C": self.blocks.classes,
            "num_warps": self.blocks.warps,
        }

    def counts(self) -> Tensor | None:
        """How many rows have a label that counts, in parts; None without labels."""
        student, *_, labels, _ = self.tensors
        if labels is None:
            return None
        counts = student.new_empty(COUNTS, dtype=torch.int64)
        groups = self.groups if labels.dim() == 1 else 1
        given = (labels, labels.numel(), groups, self.classes, self.ignore_index)
        count_kernel[(COUNTS,)](counts, *given, COUNTS=COUNTS, BLOCK=COUNT_BLOCK)
        return counts


def _strides(logits: Tensor) -> tuple[int, int]:
    return (logits.stride(0) if logits.dim() == 3 else 0), logits.stride(-2)


def forward(
    student: Tensor,
    teacher: Tensor,
    row_temperature: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    options: KDDivergenceOptions,
    save: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``merc::kd_divergence`` of csrc/library.cpp, in whose words ``save`` is meant.

    Returns: loss; divisor; the seven numbers a row, (G N, 7), for `backward`, or the student's gradient.
    """
    if save not in (NOTHING, STATS, GRADIENT) or (save == GRADIENT and options.reduction == "none"):
        raise ValueError(f"save: expected 0, 1, or 2 with a reduction to a scalar, got {save}")
    call = _Call(student, teacher, row_temperature, labels, row_weights, options, backward=False)
    total = call.groups * call.rows
    if save == GRADIENT:
        saved = student.new_empty(student.shape)
    else:
        saved = student.new_empty((total, SAVED.value) if save == STATS else (0,), dtype=call.dtype)
    shape = student.shape[:-1] if options.reduction == "none" else ()
    if total == 0:
        return student.new_zeros(shape, dtype=call.dtype), student.new_ones((), dtype=call.dtype), saved
    row_blocks = call.groups * cdiv(call.rows, call.blocks.rows)
    programs = row_blocks
    if call.blocks.lanes > 1 and (save == GRADIENT or options.direction == "js"):  # it is read again
        row_bytes = call.classes * (student.itemsize + teacher.itemsize)
        programs = at_work(row_blocks, row_bytes, call.blocks, chip(student.device))
    loss = student.new_empty(shape, dtype=call.dtype)
    partial = loss if options.reduction == "none" else student.new_empty((2, row_blocks), dtype=call.dtype)
    mean = options.reduction == "batchmean"
    with torch.cuda.device_of(student):
        forward_kernel[(programs,)](
            partial,
            saved if save == STATS else None,
            saved if save == GRADIENT else None,
            call.counts() if save == GRADIENT and mean else None,
            *call.tensors,
            *call.shape,
            *call.values,
            row_blocks,
            total if mean else 1,
            PARTIAL=options.reduction != "none",
            COUNTS=COUNTS,
            LANES=call.blocks.lanes,
            VECTORS=call.vectors,
            maxnreg=call.blocks.registers,
            **call.constants,
        )
        if options.reduction == "none":
            return loss, student.new_ones((), dtype=call.dtype), saved
        divisor = student.new_empty((), dtype=call.dtype)
        reduce_kernel[(1,)](
            loss,
            divisor,
            partial,
            row_blocks,
            total if mean else 1,
            COUNTS=mean and labels is not None,
            BLOCK=REDUCE_BLOCK,
            num_warps=REDUCE_WARPS,
        )
    return loss, divisor, saved


def backward(
    grad: Tensor,
    divisor: Tensor,
    saved: Tensor,
    student: Tensor,
    teacher: Tensor,
    row_temperature: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    options: KDDivergenceOptions,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """The operator ``merc::kd_divergence_backward`` of csrc/library.cpp; a gradient not wanted has shape (0,)."""
    call = _Call(student, teacher, row_temperature, labels, row_weights, options, backward=True)
    student_grad, teacher_grad = wanted
    of_student = student.new_empty(student.shape if student_grad else (0,))
    of_teacher = teacher.new_empty(teacher.shape if teacher_grad else (0,))
    total = call.groups * call.rows
    if not (student_grad or teacher_grad):
        return of_student, of_teacher
    if total == 0:
        return of_student, of_teacher.zero_()
    repeats = call.groups if call.shared and teacher_grad else 1
    programs = call.groups // repeats * cdiv(call.rows, call.blocks.rows) * call.constants["TILES"]
    with torch.cuda.device_of(student):
        backward_kernel[(programs,)](
            grad.contiguous(),
            divisor,
            saved,
            of_student if student_grad else None,
            of_teacher if teacher_grad else None,
            *call.tensors,
            0 if grad.dim() == 0 else 1,
            *call.shape,
            *call.values,
            REPEATS=repeats,
            maxnreg=call.blocks.registers if repeats == 1 else 255,
            **call.constants,
        )
    return of_student, of_teacher


def scale(gradient: Tensor, grad: Tensor, labels: Tensor | None, ignore_index: int) -> None:
    """Multiply the student's gradient, as `forward` wrote it, by that of the loss: in its place, unless it is 1."""
    rows, classes = gradient.shape[-2:]
    groups = gradient.shape[0] if gradient.dim() == 3 else 1
    if gradient.numel() == 0:
        return
    of = blocks(classes, grad.dtype, backward=True)
    a_row = cdiv(classes, of.classes)
    tiles = groups * cdiv(rows, of.rows) * a_row
    labels = None if labels is None else labels.contiguous()
    with torch.cuda.device_of(gradient):
        scale_kernel[(min(tiles, MOST_PROGRAMS),)](
            grad,
            gradient,
            labels,
            rows if labels is not None and labels.dim() == 2 else 0,
            rows,
            groups,
            classes,
            ignore_index,
            tiles,
            TILES=a_row,
            BLOCK_N=of.rows,
            BLOCK_C=of.classes,
            num_warps=of.warps,
        )

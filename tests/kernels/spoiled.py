"""Rows that hold a NaN, +inf or nothing but -inf: their loss is NaN where they count, and 0 where they are ignored."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from merc_kernels import kd_divergence

SPOILS = ("NaN", "+inf", "-inf alone", "NaN alone")
ROWS, SPOILT, IGNORED = 5, 1, 3
LABELS = torch.tensor([0, 0, 1, -100, 1])

Values = list[Tensor]  # losses of the rows, or one; student's and teacher's gradients
Run = Callable[[Tensor, Tensor], Values]


def spoil(row: Tensor, kind: str, place: int) -> None:
    """``row`` becomes one of SPOILS."""
    if kind.endswith("alone"):
        row.fill_(-torch.inf if kind.startswith("-") else torch.nan)
    else:
        row[place] = torch.nan if kind == "NaN" else torch.inf


def pairs(width: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Student and teacher, of which one has a spoilt row that counts and one, if labelled by LABELS, that does not."""
    for kind, of_student, left_out in itertools.product(SPOILS, (True, False), (None, "first", "last")):
        pair = [torch.randn(ROWS, width, dtype=torch.float64).mul(3).to(dtype) for _ in range(2)]
        place = 0 if left_out == "first" else width - 1
        for row in (SPOILT, IGNORED):
            spoil(pair[not of_student][row], kind, place)
            if left_out is not None:  # what it says of this class counts for nothing in the divergence
                pair[of_student][row, place] = -torch.inf
        side = "student" if of_student else "teacher"
        yield f"{kind} in the {side}, class left out: {left_out}", *pair


def through_autograd(teacher_grad: bool, **options: Any) -> Run:
    """`kd_divergence` with these options."""

    def run(student: Tensor, teacher: Tensor) -> Values:
        leaves = [student.clone().requires_grad_(), teacher.clone().requires_grad_(teacher_grad)]
        loss = kd_divergence(*leaves, teacher_grad=teacher_grad, **options)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves[: 1 + teacher_grad])]

    return run


def check(run: Run, width: int, dtype: torch.dtype, labelled: bool) -> None:
    """NaN in the loss and in all of the gradient of the spoilt row; nothing of an ignored one; the others as ever."""
    for title, student, teacher in pairs(width, dtype):
        good = [row for row in range(ROWS) if row != SPOILT and (labelled or row != IGNORED)]
        clean = [x.clone() for x in (student, teacher)]
        for x in clean:
            x[[row for row in range(ROWS) if row not in good]] = 0
            if labelled:
                x[IGNORED] = 0
        loss, *gradients = run(student, teacher)
        true_loss, *true_gradients = run(*clean)
        bad = loss.isnan()
        assert bad[SPOILT] if loss.dim() else bad, title
        if loss.dim():
            assert torch.equal(loss[good], true_loss[good]), title
        for gradient, truth in zip(gradients, true_gradients, strict=True):
            assert gradient[SPOILT].isnan().all(), (title, gradient[SPOILT])
            assert torch.equal(gradient[good], truth[good]), title
            assert not labelled or (gradient[IGNORED] == 0).all(), title

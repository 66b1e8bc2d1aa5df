"""What the choice of a backend on a GPU looks at, and the small problem that a first use is tried on."""

from collections.abc import Callable

import torch
from torch import Tensor

from merc_kernels._shared import backends, first_use
from merc_kernels.kd_divergence.options import KDDivergenceOptions

_MOST = 1 << 22  # logits of a problem: rows become fewer where classes are many


def call(
    loss: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    options: KDDivergenceOptions,
) -> backends.Call:
    """Of these tensors; ``loss`` is the public function."""
    classes = student.shape[-1]
    ahead = options.reduction != "none" and not options.teacher_grad  # where one pass may give value and gradient
    path = (options.direction, f"C {classes}", *(["ahead"] if ahead else []))
    chosen: dict[str, object] = {"direction": options.direction, "temperature": 2.0, "beta": options.beta}

    def problem() -> first_use.Problem:
        rows = max(5, min(first_use.ROWS, _MOST // classes))
        made = torch.Generator().manual_seed(0)
        logits = [3 * torch.randn(rows, classes, generator=made) for _ in range(2)]
        targets = torch.randint(classes, (rows,), generator=made)
        targets[::7] = options.ignore_index
        names = ("student_logits", "teacher_logits")
        tensors = {name: x.to(student) for name, x in zip(names, logits, strict=True)}
        tensors["labels"] = targets.to(student.device)
        more = {"ce_weight": 0.5, "teacher_grad": not ahead, "ignore_index": options.ignore_index}
        return first_use.Problem(tensors, {**chosen, **more, "reduction": "sum"})

    compiling = torch.compiler.is_compiling()
    rows, count = (None, 0) if compiling else (student.shape[-2], student.numel())
    return backends.Call(student, rows, count, loss, problem, path)

"""The tensors of a call of the divergence: what they must be."""

import math

from torch import Tensor

from merc_kernels._shared import checks
from merc_kernels._shared.checks import DTYPES, FLOAT, INT64, fail, shared, tensor
from merc_kernels.kd_divergence.options import KDDivergenceOptions


def check(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    options: KDDivergenceOptions,
) -> None:
    """The tensors fit together and the options, or a ValueError says which does not."""
    if (  # the commonest call, with nothing wrong: small batches feel every microsecond
        labels is None
        and row_weights is None
        and temperature is None
        and options.ce_weight == 0
        and isinstance(student_logits, Tensor)
        and isinstance(teacher_logits, Tensor)
        and student_logits.dtype in DTYPES[FLOAT]
        and teacher_logits.dtype in DTYPES[FLOAT]
        and student_logits.device == teacher_logits.device
        and (size := student_logits.shape) == teacher_logits.shape
        and len(size) == 2
        and size[1] > 0
    ):
        return
    tensor("student_logits", student_logits, FLOAT, None, ("N", "C"), ("G", "N", "C"))
    device, groups = student_logits.device, tuple(student_logits.shape[:-2])
    rows, classes = student_logits.shape[-2:]
    if classes == 0:
        fail("student_logits", "at least one class (C > 0)", student_logits)
    tensor("teacher_logits", teacher_logits, FLOAT, device, *shared((rows, classes), groups))
    if labels is not None:
        tensor("labels", labels, INT64, device, *shared((rows,), groups))
        checks.labels_in_range("labels", labels, classes, options.ignore_index)
    elif options.ce_weight != 0:
        fail("labels", f"a tensor, as ce_weight={options.ce_weight}", labels)
    if row_weights is not None:
        tensor("row_weights", row_weights, FLOAT, device, *shared((rows,), groups))
    if temperature is not None:
        tensor("temperature", temperature, FLOAT, device, (), (rows,))
        if checks.readable(temperature):
            used = None
            if temperature.dim() and labels is not None:  # that of a row which every group ignores is not used
                used = (labels != options.ignore_index).expand(*groups, rows).reshape(math.prod(groups), rows).any(0)
            checks.temperatures("temperature", temperature, used)

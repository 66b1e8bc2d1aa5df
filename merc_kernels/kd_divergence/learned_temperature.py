r"""The divergence with a gradient to the temperature, on backends that know none.

Where T0 is the value of T, s / T = s' / T0 with s' = s T0 / T, and likewise for the teacher: a backend that works at T0
and gives gradients of its logits gives one of T through them. Softmax does not see a shift of a row, so that

    s' = s + (s - max s) (T0 / T - 1)

has the value s to the bit. The factor T^2 is (T / T0)^2 times that of the backend, and the cross entropy, at T = 1, is
of the logits as they came.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from merc_kernels.kd_divergence import reference
from merc_kernels.kd_divergence.options import KDDivergenceOptions

Divergence = Callable[[Tensor, Tensor, Tensor, Tensor | None, None, KDDivergenceOptions], Tensor]


def kd_divergence(
    divergence: Divergence,
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor,
    labels: Tensor | None,
    row_weights: Tensor | None,
    options: KDDivergenceOptions,
) -> Tensor:
    """``divergence``, which gives no gradient to ``temperature`` ``(N,)`` or ``()``, with one."""
    dtype = reference.accumulate(student, teacher, temperature, row_weights)
    student = student.to(dtype)  # [G, N, C] or [N, C]; the sum over C of a gradient is no sum of 16-bit numbers
    teacher = (teacher if options.teacher_grad else teacher.detach()).to(dtype)
    keep = reference.kept(student, labels, options.ignore_index)  # [G, N] or [N]
    used = keep.reshape(student.shape[:-2].numel(), student.shape[-2]).any(0)  # [N]
    t = torch.where(used, temperature.to(dtype), 1)  # [N]
    start = t.detach()
    ratio = (start / t)[:, None]
    inner = replace(options, ce_weight=0.0, teacher_grad=True, reduction="none")
    loss = divergence(_scaled(student, ratio), _scaled(teacher, ratio), start, labels, None, inner)
    if options.scale_by_t2:
        loss = loss * (t / start) ** 2
    return reference.reduced(loss, torch.where(keep[..., None], student, 0), labels, row_weights, keep, options)


def _scaled(logits: Tensor, ratio: Tensor) -> Tensor:
    """``logits`` times ``ratio``, which is 1, but for a shift of each row; a class that is -inf stays as it is."""
    with torch.no_grad():
        below = logits - logits.amax(-1, keepdim=True)
        below = torch.where(below.isfinite(), below, 0)
    return logits + below * (ratio - 1)

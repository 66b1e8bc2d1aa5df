"""Distillation over padded dialogues: SDT's loss, and one from logits."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from merc_kernels._shared import checks
from merc_kernels.kd_divergence import KDDivergenceOptions, kd_divergence


class MaskedKLDivLoss(nn.Module):
    """KL divergence of rows that are no padding, as SDT (https://arxiv.org/abs/2310.20494) calls it.

    The gradients of padded rows are 0, also in versions of PyTorch in which the original's are NaN. From logits,
    `masked_kd_divergence` computes the same in one pass.
    """

    def forward(self, log_pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Sum over real rows of target (log target - log_pred), divided by their number.

        Args:
            log_pred: ``(B L, C)`` log-probabilities of the student, tempered where that is wanted.
            target: ``(B L, C)`` probabilities of the teacher; they get their gradient.
            mask: ``(B, L)``, 1 at real rows, 0 at padding.
        """
        checks.tensor("log_pred", log_pred, checks.FLOAT, None, ("N", "C"))
        checks.tensor("target", target, checks.FLOAT, log_pred.device, tuple(log_pred.shape))
        real = _real(mask, log_pred.shape[:1])[:, None]
        dtype = torch.promote_types(torch.promote_types(log_pred.dtype, target.dtype), torch.float32)
        log_pred, target = log_pred.to(dtype), target.to(dtype)
        counts = real & (target != 0)  # a logarithm of 0 has no gradient; that of a NaN or a negative is NaN
        p = torch.where(counts, target, 1)
        loss = torch.where(counts, p * (p.log() - torch.where(counts, log_pred, 0)), 0)
        return loss.sum() / real.sum().clamp(min=1)


def masked_kd_divergence(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """`merc_kernels.kd_divergence` of padded dialogues: the rows where ``mask`` is 0 do not count.

    Args:
        student_logits: ``(B, L, C)``.
        teacher_logits: ``(B, L, C)``.
        mask: ``(B, L)``, 1 at real rows, 0 at padding.
        **options: those of `kd_divergence`, by keyword; ``labels``, ``row_weights`` and a temperature for each row are
            ``(B, L)``.

    Returns:
        A scalar, the mean over real rows; ``(B, L)`` for ``reduction="none"``.
    """
    checks.tensor("student_logits", student_logits, checks.FLOAT, None, ("B", "L", "C"))
    shape = tuple(student_logits.shape)
    checks.tensor("teacher_logits", teacher_logits, checks.FLOAT, student_logits.device, shape)
    real = _real(mask, shape[:2])
    for name in ("row_weights", "temperature"):
        value = options.get(name)
        if isinstance(value, Tensor) and value.dim():
            checks.tensor(name, value, checks.FLOAT, student_logits.device, shape[:2])
            options[name] = value.flatten()
    labels = options.pop("labels", None)
    if labels is None:
        if options.get("ce_weight"):
            checks.fail("labels", f"a tensor, as ce_weight={options['ce_weight']}", labels)
        labels, options["ignore_index"] = torch.zeros_like(real, dtype=torch.int64), -1
    else:
        checks.tensor("labels", labels, checks.INT64, student_logits.device, shape[:2])
    labels = labels.masked_fill(~real, options.get("ignore_index", KDDivergenceOptions.ignore_index)).flatten()
    loss = kd_divergence(student_logits.flatten(0, 1), teacher_logits.flatten(0, 1), labels=labels, **options)
    return loss.view(shape[:2]) if loss.dim() else loss


def _real(mask: object, shape: tuple[int, ...]) -> Tensor:
    """Which rows are no padding, a bool of ``shape``."""
    if not isinstance(mask, Tensor) or mask.numel() != math.prod(shape):
        checks.fail("mask", f"a tensor of {' x '.join(map(str, shape))} elements", mask)
    if mask.is_floating_point() and checks.readable(mask):
        checks.elements("mask", "0 or 1", mask, (mask == 0) | (mask == 1))
    return (mask != 0).reshape(shape)

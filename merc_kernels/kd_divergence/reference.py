r"""The divergence in plain PyTorch, twice differentiable: what every backend is held to.

q = softmax(student / T), p = softmax(teacher / T), m = beta p + (1 - beta) q; value, d/dstudent::

    forward   KL(p | q)                                 (q - p) / T
    reverse   KL(q | p)                                 q (log q - log p - KL(q | p)) / T
    js        (1 - beta) KL(q | m) + beta KL(p | m)     (1 - beta) q (log q - log m - KL(q | m)) / T
"""

import math

import torch
from torch import Tensor

from merc_kernels.kd_divergence.options import KDDivergenceOptions


def kd_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | None,
    labels: Tensor | None,
    row_weights: Tensor | None,
    options: KDDivergenceOptions,
) -> Tensor:
    """The divergence; ``temperature`` stands in for that of the options, where it is there."""
    grouped = student_logits.dim() == 3
    inputs = (student_logits, teacher_logits, row_weights, temperature)
    double = any(x is not None and x.dtype == torch.float64 for x in inputs)
    dtype = torch.float64 if double else torch.float32
    shape = student_logits.shape if grouped else (1, *student_logits.shape)
    with torch.autocast(student_logits.device.type, enabled=False):
        keep = torch.ones(shape[:-1], dtype=torch.bool, device=student_logits.device)  # [G, N]
        if labels is not None:
            keep = keep & (labels != options.ignore_index) & (labels >= 0) & (labels < shape[-1])
        student = torch.where(keep[..., None], student_logits.to(dtype), 0)  # [G, N, C]
        teacher = torch.where(keep[..., None], teacher_logits.to(dtype), 0)
        if not options.teacher_grad:
            teacher = teacher.detach()
        if temperature is None:
            t = torch.full_like(keep, options.temperature, dtype=dtype)  # [G, N]
        else:
            t = temperature.detach().to(dtype).expand_as(keep)

        log_q = (student / t[..., None]).log_softmax(-1)
        log_p = (teacher / t[..., None]).log_softmax(-1)
        if options.direction == "forward":
            loss = _kl(log_p, log_q)
        elif options.direction == "reverse":
            loss = _kl(log_q, log_p)
        else:
            log_m = _log_mixture(log_p, log_q, options.beta)
            loss = (1 - options.beta) * _kl(log_q, log_m) + options.beta * _kl(log_p, log_m)
        if options.scale_by_t2:
            loss = loss * t**2
        if labels is not None and options.ce_weight != 0:
            target = torch.where(keep, labels, 0)[..., None]
            loss = loss - options.ce_weight * student.log_softmax(-1).gather(-1, target).squeeze(-1)
        if row_weights is not None:
            loss = loss * row_weights.detach().to(dtype)
        loss = torch.where(keep, loss, 0)
        if options.reduction == "none":
            return loss if grouped else loss.squeeze(0)
        if options.reduction == "sum":
            return loss.sum()
        return loss.sum() / keep.sum().clamp(min=1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) along the last axis; a class that a leaves out adds 0, and a zero gradient, whatever b says."""
    absent = log_a.exp() == 0
    return (log_a.exp() * (log_a.masked_fill(absent, 0) - log_b.masked_fill(absent, 0))).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log(beta p + (1 - beta) q); `torch.logaddexp` has NaN second derivatives where the two lie far apart."""
    absent = (log_p == -torch.inf) & (log_q == -torch.inf)
    weighted_p = log_p.masked_fill(absent, 0) + math.log(beta)
    weighted_q = log_q.masked_fill(absent, 0) + math.log(1 - beta)
    return torch.stack([weighted_p, weighted_q], -1).logsumexp(-1)

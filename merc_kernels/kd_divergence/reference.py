r"""The divergence in plain PyTorch, twice differentiable: what every backend is held to.

q = softmax(student / T), p = softmax(teacher / T), m = beta p + (1 - beta) q; value, d/dstudent::

    forward   KL(p | q)                                 (q - p) / T
    reverse   KL(q | p)                                 q (log q - log p - KL(q | p)) / T
    js        (1 - beta) KL(q | m) + beta KL(p | m)     (1 - beta) q (log q - log m - KL(q | m)) / T
"""

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
    dtype = accumulate(student_logits, teacher_logits, temperature, row_weights)
    with torch.autocast(student_logits.device.type, enabled=False):
        keep = kept(student_logits, labels, options.ignore_index)
        student = torch.where(keep[..., None], student_logits.to(dtype), 0)  # [G, N, C], here and below without G too
        teacher = torch.where(keep[..., None], teacher_logits.to(dtype), 0)
        if not options.teacher_grad:
            teacher = teacher.detach()
        if temperature is None:
            t = torch.full_like(keep, options.temperature, dtype=dtype)  # [G, N]
        else:
            t = torch.where(keep, temperature.to(dtype), 1)

        log_q = _log_softmax(student, t)
        log_p = _log_softmax(teacher, t)
        if options.direction == "forward":
            loss = _kl(log_p, log_q)
        elif options.direction == "reverse":
            loss = _kl(log_q, log_p)
        else:
            loss = _js(log_p, log_q, options.beta)
        if options.scale_by_t2:
            loss = loss * t**2
        return reduced(loss, student, labels, row_weights, keep, options)


def accumulate(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that the divergence of these tensors is computed in."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32


def kept(student: Tensor, labels: Tensor | None, ignore_index: int) -> Tensor:
    """Which rows count, ``[G, N]``: those whose label is a class, or all."""
    keep = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    return keep if labels is None else keep & (labels != ignore_index) & (labels >= 0) & (labels < student.shape[-1])


def reduced(
    loss: Tensor,
    student: Tensor,
    labels: Tensor | None,
    row_weights: Tensor | None,
    keep: Tensor,
    options: KDDivergenceOptions,
) -> Tensor:
    """The divergence of each row, ``loss`` ``[G, N]``, with its cross entropy and its weight, reduced."""
    if labels is not None and options.ce_weight != 0:
        target = torch.where(keep, labels, 0)[..., None]
        loss = loss - options.ce_weight * student.log_softmax(-1).gather(-1, target).squeeze(-1)
    if row_weights is not None:
        loss = loss * row_weights.detach().to(loss.dtype)
    loss = torch.where(keep, loss, 0)
    if options.reduction == "none":
        return loss
    if options.reduction == "sum":
        return loss.sum()
    return loss.sum() / keep.sum().clamp(min=1)


def _log_softmax(logits: Tensor, t: Tensor) -> Tensor:
    """Logarithm of softmax(logits / t); to the gradient of t a class of -inf adds 0, which would be 0 times inf."""
    t = t[..., None]
    return (logits / torch.where(logits == -torch.inf, t.detach(), t)).log_softmax(-1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) along the last axis; a class that a leaves out adds 0, and a zero gradient, whatever b says."""
    return _mean(log_a, log_a - log_b)


def _js(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """(1 - beta) KL(q‖m) + beta KL(p‖m), m = beta p + (1 - beta) q: 0 to the bit where p = q.

    With d = log p - log q, log(m / q) = log(1 + beta (e^d - 1)), taken where d <= 0; else log(m / p) likewise. The
    choice by `torch.where` keeps second derivatives finite where p and q lie far apart.
    """
    absent = (log_p == -torch.inf) & (log_q == -torch.inf)
    d = log_p.masked_fill(absent, 0) - log_q.masked_fill(absent, 0)
    m_over_q = torch.log1p(beta * torch.expm1(torch.where(d <= 0, d, 0)))
    m_over_p = torch.log1p((1 - beta) * torch.expm1(torch.where(d > 0, -d, 0)))
    of_q = torch.where(d <= 0, -m_over_q, -d - m_over_p)  # log(q / m)
    of_p = torch.where(d <= 0, d - m_over_q, -m_over_p)  # log(p / m)
    return (1 - beta) * _mean(log_q, of_q) + beta * _mean(log_p, of_p)


def _mean(log_a: Tensor, values: Tensor) -> Tensor:
    """Mean of ``values`` under the distribution a; a class that a leaves out adds 0, and a zero gradient."""
    a = log_a.exp()
    return (a * values.masked_fill(a == 0, 0)).sum(-1)

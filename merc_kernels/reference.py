r"""The two losses in plain PyTorch: N x N memory, twice differentiable; what every backend is held to.

The arguments are those of `merc_kernels.focal_contrastive_loss` and `merc_kernels.kd_divergence`; ``backend``
may be None or ``"reference"``.

Focal contrastive: anchor i, candidates j, positives P(i), rows z of length 1, s_ij = z_i.z_j / tau::

    L_i = logsumexp_j s_ij        loss_i = w_i / |P(i)| sum_{j in P(i)} g(s_ij, L_i)
    g(s, L) = -h (s - L)          h = ((1 - z_i.z_j) / 2)^gamma   or   (1 - exp(s - L))^gamma
    dloss_i/ds_ij = w_i / |P(i)| ([j in P(i)] dg/ds(s_ij, L_i) + exp(s_ij - L_i) sum_{k in P(i)} dg/dL(s_ik, L_i))

Divergence: q = softmax(student / T), p = softmax(teacher / T), m = beta p + (1 - beta) q; value, d/dstudent::

    forward   KL(p | q)                                 (q - p) / T
    reverse   KL(q | p)                                 q (log q - log p - KL(q | p)) / T
    js        (1 - beta) KL(q | m) + beta KL(p | m)     (1 - beta) q (log q - log m - KL(q | m)) / T
"""

import math
from typing import Literal

import torch
from torch import Tensor

from merc_kernels import _checks
from merc_kernels._ordinary import ordinary


def focal_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    gamma: float = 2.0,
    focal: Literal["similarity", "probability"] = "similarity",
    detach_focal: bool = True,
    class_weights: Tensor | None = None,
    prototypes: Tensor | None = None,
    prototype_anchors: bool = False,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_only: bool = False,
    normalize: bool = True,
    ignore_index: int = -100,
    backend: str | None = None,
    reduction: Literal["mean", "batchmean", "sum", "none"] = "mean",
) -> Tensor:
    """Focal supervised contrastive loss: `merc_kernels.focal_contrastive_loss` on the N x N matrix."""
    _only_reference(backend)
    _checks.focal_contrastive_options(
        gamma=gamma,
        focal=focal,
        detach_focal=detach_focal,
        prototype_anchors=prototype_anchors,
        ref_only=ref_only,
        normalize=normalize,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    classes = _checks.focal_contrastive_tensors(
        embeddings,
        labels,
        temperature=temperature,
        class_weights=class_weights,
        prototypes=prototypes,
        prototype_anchors=prototype_anchors,
        ref_embeddings=ref_embeddings,
        ref_labels=ref_labels,
        ref_only=ref_only,
        ignore_index=ignore_index,
    )
    embeddings, prototypes, ref_embeddings = ordinary(embeddings, prototypes, ref_embeddings)
    labels, ref_labels, class_weights = ordinary(labels, ref_labels, class_weights)
    if isinstance(temperature, Tensor):
        (temperature,) = ordinary(temperature)
    grouped = embeddings.dim() == 3
    groups, rows = (embeddings.shape[0] if grouped else 1), embeddings.shape[-2]
    dtype = _compute_dtype(embeddings, prototypes, ref_embeddings, class_weights, temperature)
    vectors, names, anchors = [embeddings], [labels], rows
    if prototypes is not None:
        vectors.append(prototypes)
        names.append(torch.arange(prototypes.shape[-2], device=labels.device))
        anchors = rows + (prototypes.shape[-2] if prototype_anchors else 0)
    if ref_embeddings is not None and ref_labels is not None:
        vectors.append(ref_embeddings)
        names.append(ref_labels)

    with torch.autocast(embeddings.device.type, enabled=False):
        # Rows, prototypes and refs stand in one list; the anchors are its head, the candidates its tail.
        z = torch.cat([v.to(dtype).expand(groups, -1, -1) for v in vectors], 1)  # [G, N + C + M, D]
        y = torch.cat([n.expand(groups, -1) for n in names], 1)  # [G, N + C + M]
        keep = y != ignore_index
        if classes is not None:
            keep = keep & (y >= 0) & (y < classes)
        z = torch.where(keep[..., None], z, 0)
        if normalize:
            z = _unit(z)
        tail = rows if ref_only else 0
        cosine = z[:, :anchors] @ z[:, tail:].mT  # [G, anchors, candidates]
        candidate = keep[:, None, tail:].expand_as(cosine)  # a row that is not kept has no positive among them
        if not ref_only:
            candidate = candidate & ~torch.eye(*cosine.shape[1:], dtype=torch.bool, device=z.device)
        positive = candidate & (y[:, :anchors, None] == y[:, None, tail:])

        s = cosine / (temperature.to(dtype) if isinstance(temperature, Tensor) else temperature)
        lonely = ~candidate.any(-1, keepdim=True)  # a softmax of -inf alone would have a NaN gradient
        s = s.masked_fill(~candidate, -torch.inf).masked_fill(lonely, 0)
        log_p = s.log_softmax(-1).masked_fill(~positive, 0)  # exact also where a positive holds nearly all of the sum
        floor = torch.finfo(dtype).eps / 2
        base = (1 - cosine) / 2 if focal == "similarity" else -torch.expm1(log_p)
        h = (base.clamp(floor, 1) ** gamma).masked_fill(~positive, 0)  # a NaN elsewhere reaches nothing by it
        count = positive.sum(-1)
        loss = -((h.detach() if detach_focal else h) * log_p).sum(-1) / count.clamp(min=1)  # [G, anchors]
        if class_weights is not None:
            weight = class_weights.detach().to(dtype)[torch.where(keep, y, 0)[:, :anchors]]
            loss = loss * torch.where(count > 0, weight, 0)
        counted = (count > 0) if reduction == "mean" else keep[:, :anchors]
        return _reduce(loss, counted, reduction, grouped)


def kd_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 2.0,
    direction: Literal["forward", "reverse", "js"] = "forward",
    beta: float = 0.5,
    labels: Tensor | None = None,
    ce_weight: float = 0.0,
    row_weights: Tensor | None = None,
    teacher_grad: bool = False,
    scale_by_t2: bool = True,
    ignore_index: int = -100,
    backend: str | None = None,
    reduction: Literal["batchmean", "sum", "none"] = "batchmean",
) -> Tensor:
    """Divergence of a student from its teacher: `merc_kernels.kd_divergence` in plain PyTorch."""
    _only_reference(backend)
    _checks.kd_options(
        direction=direction,
        beta=beta,
        ce_weight=ce_weight,
        teacher_grad=teacher_grad,
        scale_by_t2=scale_by_t2,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    _checks.kd_tensors(
        student_logits,
        teacher_logits,
        temperature=temperature,
        labels=labels,
        ce_weight=ce_weight,
        row_weights=row_weights,
        ignore_index=ignore_index,
    )
    student_logits, teacher_logits = ordinary(student_logits, teacher_logits)
    labels, row_weights = ordinary(labels, row_weights)
    if isinstance(temperature, Tensor):
        (temperature,) = ordinary(temperature)
    grouped = student_logits.dim() == 3
    dtype = _compute_dtype(student_logits, teacher_logits, row_weights, temperature)
    shape = student_logits.shape if grouped else (1, *student_logits.shape)
    with torch.autocast(student_logits.device.type, enabled=False):
        keep = torch.ones(shape[:-1], dtype=torch.bool, device=student_logits.device)  # [G, N]
        if labels is not None:
            keep = keep & (labels != ignore_index) & (labels >= 0) & (labels < shape[-1])
        student = torch.where(keep[..., None], student_logits.to(dtype), 0)  # [G, N, C]
        teacher = torch.where(keep[..., None], teacher_logits.to(dtype), 0)
        if not teacher_grad:
            teacher = teacher.detach()
        if isinstance(temperature, Tensor):
            t = temperature.detach().to(dtype).expand_as(keep)  # [G, N]
        else:
            t = torch.full_like(keep, temperature, dtype=dtype)

        log_q = (student / t[..., None]).log_softmax(-1)
        log_p = (teacher / t[..., None]).log_softmax(-1)
        if direction == "forward":
            loss = _kl(log_p, log_q)
        elif direction == "reverse":
            loss = _kl(log_q, log_p)
        else:
            log_m = _log_mixture(log_p, log_q, beta)
            loss = (1 - beta) * _kl(log_q, log_m) + beta * _kl(log_p, log_m)
        if scale_by_t2:
            loss = loss * t**2
        if labels is not None and ce_weight != 0:
            target = torch.where(keep, labels, 0)[..., None]
            loss = loss - ce_weight * student.log_softmax(-1).gather(-1, target).squeeze(-1)
        if row_weights is not None:
            loss = loss * row_weights.detach().to(dtype)
        return _reduce(torch.where(keep, loss, 0), keep, reduction, grouped)


def _only_reference(backend: str | None) -> None:
    if backend not in (None, "reference"):
        _checks.fail("backend", "None or 'reference'", backend)


def _compute_dtype(*inputs: Tensor | float | None) -> torch.dtype:
    double = any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in inputs)
    return torch.float64 if double else torch.float32


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1. A zero row stays zero, with a zero gradient; no square over- or underflows."""
    size = x.detach().abs().amax(-1, keepdim=True)  # the result does not depend on it, nor do its derivatives
    nonzero = size != 0  # a NaN stays one
    x = x / torch.where(nonzero, size, 1)
    square = (x * x).sum(-1, keepdim=True)
    return torch.where(nonzero, x / torch.where(nonzero, square, 1).sqrt(), 0)


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


def _reduce(rows: Tensor, counted: Tensor, reduction: str, grouped: bool) -> Tensor:
    if reduction == "none":
        return rows if grouped else rows.squeeze(0)
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / counted.sum().clamp(min=1)

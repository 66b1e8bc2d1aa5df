"""The losses once more, a Python loop over anchors and rows: the independent truth. Options as in the package."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _groups(x: Tensor | None, groups: int, dims: int) -> list[Tensor | None]:
    """Group g's part of a tensor that has its own for each, or that the groups share."""
    if x is None or x.dim() == dims:
        return [x] * groups
    return list(x.unbind(0))


def _unit(v: Tensor) -> Tensor:
    norm = v.square().sum().sqrt()
    return v / norm if norm > 0 else v.detach()


def focal_contrastive(
    embeddings,
    labels,
    *,
    temperature=0.1,
    gamma=2.0,
    focal="similarity",
    detach_focal=True,
    class_weights=None,
    prototypes=None,
    prototype_anchors=False,
    ref_embeddings=None,
    ref_labels=None,
    ref_only=False,
    normalize=True,
    ignore_index=-100,
    reduction="mean",
):
    groups = embeddings.shape[0] if embeddings.dim() == 3 else 1
    per_group, with_positive, kept = [], 0, 0
    for x, y, proto, refs, ref_y in zip(
        _groups(embeddings, groups, 2),
        _groups(labels, groups, 1),
        _groups(prototypes, groups, 2),
        _groups(ref_embeddings, groups, 2),
        _groups(ref_labels, groups, 1),
        strict=True,
    ):
        batch = list(zip(x.unbind(0), y.tolist(), strict=True))
        protos = [] if proto is None else [(v, c) for c, v in enumerate(proto.unbind(0))]
        others = [] if refs is None else list(zip(refs.unbind(0), ref_y.tolist(), strict=True))
        everyone = [
            (_unit(v) if normalize else v, label) if label != ignore_index else (None, label)
            for v, label in batch + protos + others
        ]
        first_ref = len(batch) + len(protos)
        candidates = range(first_ref, len(everyone)) if ref_only else range(len(everyone))
        losses = []
        for i in range(first_ref if prototype_anchors else len(batch)):
            z, label = everyone[i]
            losses.append(x.new_zeros(()))
            if label == ignore_index:
                continue
            kept += 1
            mine = [j for j in candidates if (ref_only or j != i) and everyone[j][1] != ignore_index]
            positives = [n for n, j in enumerate(mine) if everyone[j][1] == label]
            if not positives:
                continue
            with_positive += 1
            cosines = torch.stack([torch.dot(z, everyone[j][0]) for j in mine])
            s = cosines / temperature
            shift = s.max().detach()
            log_sum = (s - shift).exp().sum().log()
            terms = []
            tiny = 2.0**-53 if x.dtype == torch.float64 else 2.0**-24
            for n in positives:
                log_p = (s[n] - shift) - log_sum
                base = (1 - cosines[n]) / 2 if focal == "similarity" else -log_p.expm1()
                if base < tiny:
                    base = torch.full_like(base, tiny)
                if base > 1:
                    base = torch.ones_like(base)
                h = base**gamma
                terms.append(-(h.detach() if detach_focal else h) * log_p)
            loss = sum(terms) / len(positives)
            losses[-1] = loss if class_weights is None else loss * class_weights[label].item()
        per_group.append(torch.stack(losses) if losses else x.new_zeros(0))
    if reduction == "none":
        return torch.stack(per_group) if embeddings.dim() == 3 else per_group[0]
    total = sum((losses.sum() for losses in per_group), embeddings.new_zeros(()))
    return total / {"mean": max(with_positive, 1), "batchmean": max(kept, 1), "sum": 1}[reduction]


def kd_divergence(
    student_logits,
    teacher_logits,
    *,
    temperature=2.0,
    direction="forward",
    beta=0.5,
    labels=None,
    ce_weight=0.0,
    row_weights=None,
    teacher_grad=False,
    scale_by_t2=True,
    ignore_index=-100,
    reduction="batchmean",
):
    groups = student_logits.shape[0] if student_logits.dim() == 3 else 1
    per_group, kept = [], 0
    for student, teacher, y, weights in zip(
        _groups(student_logits, groups, 2),
        _groups(teacher_logits, groups, 2),
        _groups(labels, groups, 1),
        _groups(row_weights, groups, 1),
        strict=True,
    ):
        losses = []
        for n in range(student.shape[0]):
            losses.append(student.new_zeros(()))
            if y is not None and y[n] == ignore_index:
                continue
            kept += 1
            t = temperature[n] if isinstance(temperature, Tensor) and temperature.dim() else temperature
            log_q = F.log_softmax(student[n] / t, -1)
            log_p = F.log_softmax((teacher[n] if teacher_grad else teacher[n].detach()) / t, -1)
            if direction == "forward":
                loss = F.kl_div(log_q, log_p.exp(), reduction="sum")
            elif direction == "reverse":
                loss = F.kl_div(log_p, log_q.exp(), reduction="sum")
            else:
                p, q = log_p.exp(), log_q.exp()
                m = beta * p + (1 - beta) * q
                loss = (1 - beta) * (q * (q / m).log()).sum() + beta * (p * (p / m).log()).sum()
            if scale_by_t2:
                loss = loss * t**2
            if ce_weight:
                loss = loss + ce_weight * F.cross_entropy(student[n], y[n])
            losses[-1] = loss if weights is None else loss * weights[n].item()
        per_group.append(torch.stack(losses) if losses else student.new_zeros(0))
    if reduction == "none":
        return torch.stack(per_group) if student_logits.dim() == 3 else per_group[0]
    total = sum((losses.sum() for losses in per_group), student_logits.new_zeros(()))
    return total / {"batchmean": max(kept, 1), "sum": 1}[reduction]

r"""The focal contrastive loss in plain PyTorch: N x N memory, twice differentiable; what every backend is held to.

Anchor i, candidates j, positives P(i), rows z of length 1, s_ij = z_i.z_j / tau::

    L_i = logsumexp_j s_ij        loss_i = w_i / |P(i)| sum_{j in P(i)} g(s_ij, L_i)
    g(s, L) = -h (s - L)          h = ((1 - z_i.z_j) / 2)^gamma   or   (1 - exp(s - L))^gamma
    dloss_i/ds_ij = w_i / |P(i)| ([j in P(i)] dg/ds(s_ij, L_i) + exp(s_ij - L_i) sum_{k in P(i)} dg/dL(s_ik, L_i))

With sets of labels, P(i) are the candidates of overlap o_ij above a threshold, and o_ij multiplies g.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from merc_kernels.focal_contrastive.options import FocalContrastiveOptions


class Rows(NamedTuple):
    """Rows, prototypes and refs in one list; the anchors are its head, the candidates its tail."""

    z: Tensor  # [G, N + C + M, D]
    y: Tensor  # [G, N + C + M]; sets of labels have one more axis
    keep: Tensor  # [G, N + C + M]
    anchors: int
    tail: int


def focal_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
) -> Tensor:
    """The loss; ``temperature`` stands in for that of the options, where it is there."""
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = stacked(embeddings, labels, prototypes, ref_embeddings, ref_labels, class_weights, temperature, options)
        loss, count = anchor_losses(rows, 0, rows.anchors, temperature, options)
        return reduced(loss, count, rows, class_weights, options, grouped=embeddings.dim() == 3)


def stacked(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    ref_embeddings: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
) -> Rows:
    """The rows of a call, in the dtype that it is computed in."""
    groups, rows = (embeddings.shape[0] if embeddings.dim() == 3 else 1), embeddings.shape[-2]
    inputs = (embeddings, prototypes, ref_embeddings, class_weights, temperature)
    double = any(x is not None and x.dtype == torch.float64 for x in inputs)
    dtype = torch.float64 if double else torch.float32
    sets = labels.dtype == torch.bool
    vectors, names, anchors = [embeddings], [labels], rows
    classes = None if class_weights is None else class_weights.shape[0]
    if prototypes is not None:
        classes = prototypes.shape[-2]
        vectors.append(prototypes)
        every = torch.arange(classes, device=labels.device)
        names.append(every[:, None] == every if sets else every)
        anchors = rows + (classes if options.prototype_anchors else 0)
    if ref_embeddings is not None and ref_labels is not None:
        vectors.append(ref_embeddings)
        names.append(ref_labels)

    z = torch.cat([v.to(dtype).expand(groups, -1, -1) for v in vectors], 1)
    y = torch.cat([n.expand(groups, *n.shape[-2 if sets else -1 :]) for n in names], 1)
    keep = torch.ones_like(z[..., 0], dtype=torch.bool) if sets else y != options.ignore_index
    if classes is not None and not sets:
        keep = keep & (y >= 0) & (y < classes)
    z = torch.where(keep[..., None], z, 0)
    return Rows(_unit(z) if options.normalize else z, y, keep, anchors, rows if options.ref_only else 0)


def anchor_losses(
    rows: Rows, begin: int, end: int, temperature: Tensor | None, options: FocalContrastiveOptions
) -> tuple[Tensor, Tensor]:
    """Of the anchors from ``begin`` to ``end``: the loss before class weights, and the number of positives."""
    z, y, keep, _, tail = rows
    cosine = z[:, begin:end] @ z[:, tail:].mT  # [G, anchors, candidates]
    candidate = keep[:, None, tail:].expand_as(cosine)  # a row that is not kept has no positive among them
    if not options.ref_only:
        places = torch.arange(z.shape[1], device=z.device)
        candidate = candidate & (places[begin:end, None] != places)
    if y.dtype == torch.bool:
        overlap = _overlap(y[:, begin:end], y[:, tail:], z.dtype)
        positive = candidate & (overlap > options.overlap_threshold)
    else:
        overlap = None
        positive = candidate & (y[:, begin:end, None] == y[:, None, tail:])

    s = cosine / (options.temperature if temperature is None else temperature.to(z.dtype))
    lonely = ~candidate.any(-1, keepdim=True)  # a softmax of -inf alone would have a NaN gradient
    s = s.masked_fill(~candidate, -torch.inf).masked_fill(lonely, 0)
    log_p = s.log_softmax(-1).masked_fill(~positive, 0)  # exact also where a positive holds nearly all of the sum
    floor = torch.finfo(z.dtype).eps / 2
    base = (1 - cosine) / 2 if options.focal == "similarity" else -torch.expm1(log_p)
    h = (base.clamp(floor, 1) ** options.gamma).masked_fill(~positive, 0)  # a NaN elsewhere reaches nothing by it
    h = h.detach() if options.detach_focal else h
    count = positive.sum(-1)
    loss = -((h if overlap is None else h * overlap) * log_p).sum(-1) / count.clamp(min=1)
    return loss, count


def reduced(
    loss: Tensor,
    count: Tensor,
    rows: Rows,
    class_weights: Tensor | None,
    options: FocalContrastiveOptions,
    grouped: bool,
) -> Tensor:
    """The result of a call from `anchor_losses` of all anchors, ``[G, anchors]``."""
    keep = rows.keep[:, : rows.anchors]
    if class_weights is not None:
        weight = class_weights.detach().to(loss.dtype)[torch.where(keep, rows.y[:, : rows.anchors], 0)]
        loss = loss * torch.where(count > 0, weight, 0)
    if options.reduction == "none":
        return loss if grouped else loss.squeeze(0)
    if options.reduction == "sum":
        return loss.sum()
    counted = (count > 0) if options.reduction == "mean" else keep
    return loss.sum() / counted.sum().clamp(min=1)


def _overlap(y: Tensor, others: Tensor, dtype: torch.dtype) -> Tensor:
    """Common labels by all labels (Jaccard) of two sets, 0 where both are empty; [G, anchors, candidates]."""
    y, others = y.to(dtype), others.to(dtype)
    common = y @ others.mT
    either = y.sum(-1)[..., None] + others.sum(-1)[:, None] - common
    return common / either.clamp(min=1)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1. A zero row stays zero, with a zero gradient; no square over- or underflows."""
    size = x.detach().abs().amax(-1, keepdim=True)  # the result does not depend on it, nor do its derivatives
    nonzero = size != 0  # a NaN stays one
    x = x / torch.where(nonzero, size, 1)
    square = (x * x).sum(-1, keepdim=True)
    return torch.where(nonzero, x / torch.where(nonzero, square, 1).sqrt(), 0)

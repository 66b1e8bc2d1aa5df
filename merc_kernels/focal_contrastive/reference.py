r"""The focal contrastive loss in plain PyTorch: N x N memory, twice differentiable; what every backend is held to.

Anchor i, candidates j, positives P(i), rows z of length 1, s_ij = z_i.z_j / tau::

    L_i = logsumexp_j s_ij        loss_i = w_i / |P(i)| sum_{j in P(i)} g(s_ij, L_i)
    g(s, L) = -h (s - L)          h = ((1 - z_i.z_j) / 2)^gamma   or   (1 - exp(s - L))^gamma
    dloss_i/ds_ij = w_i / |P(i)| ([j in P(i)] dg/ds(s_ij, L_i) + exp(s_ij - L_i) sum_{k in P(i)} dg/dL(s_ik, L_i))
"""

import torch
from torch import Tensor

from merc_kernels.focal_contrastive.options import FocalContrastiveOptions


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
    grouped = embeddings.dim() == 3
    groups, rows = (embeddings.shape[0] if grouped else 1), embeddings.shape[-2]
    inputs = (embeddings, prototypes, ref_embeddings, class_weights, temperature)
    double = any(x is not None and x.dtype == torch.float64 for x in inputs)
    dtype = torch.float64 if double else torch.float32
    vectors, names, anchors = [embeddings], [labels], rows
    if prototypes is not None:
        vectors.append(prototypes)
        names.append(torch.arange(prototypes.shape[-2], device=labels.device))
        anchors = rows + (prototypes.shape[-2] if options.prototype_anchors else 0)
    if ref_embeddings is not None and ref_labels is not None:
        vectors.append(ref_embeddings)
        names.append(ref_labels)

    with torch.autocast(embeddings.device.type, enabled=False):
        # Rows, prototypes and refs stand in one list; the anchors are its head, the candidates its tail.
        z = torch.cat([v.to(dtype).expand(groups, -1, -1) for v in vectors], 1)  # [G, N + C + M, D]
        y = torch.cat([n.expand(groups, -1) for n in names], 1)  # [G, N + C + M]
        keep = y != options.ignore_index
        classes = None if class_weights is None else class_weights.shape[0]
        classes = classes if prototypes is None else prototypes.shape[-2]
        if classes is not None:
            keep = keep & (y >= 0) & (y < classes)
        z = torch.where(keep[..., None], z, 0)
        if options.normalize:
            z = _unit(z)
        tail = rows if options.ref_only else 0
        cosine = z[:, :anchors] @ z[:, tail:].mT  # [G, anchors, candidates]
        candidate = keep[:, None, tail:].expand_as(cosine)  # a row that is not kept has no positive among them
        if not options.ref_only:
            candidate = candidate & ~torch.eye(*cosine.shape[1:], dtype=torch.bool, device=z.device)
        positive = candidate & (y[:, :anchors, None] == y[:, None, tail:])

        s = cosine / (options.temperature if temperature is None else temperature.to(dtype))
        lonely = ~candidate.any(-1, keepdim=True)  # a softmax of -inf alone would have a NaN gradient
        s = s.masked_fill(~candidate, -torch.inf).masked_fill(lonely, 0)
        log_p = s.log_softmax(-1).masked_fill(~positive, 0)  # exact also where a positive holds nearly all of the sum
        floor = torch.finfo(dtype).eps / 2
        base = (1 - cosine) / 2 if options.focal == "similarity" else -torch.expm1(log_p)
        h = (base.clamp(floor, 1) ** options.gamma).masked_fill(~positive, 0)  # a NaN elsewhere reaches nothing by it
        count = positive.sum(-1)
        loss = -((h.detach() if options.detach_focal else h) * log_p).sum(-1) / count.clamp(min=1)  # [G, anchors]
        if class_weights is not None:
            weight = class_weights.detach().to(dtype)[torch.where(keep, y, 0)[:, :anchors]]
            loss = loss * torch.where(count > 0, weight, 0)
        if options.reduction == "none":
            return loss if grouped else loss.squeeze(0)
        if options.reduction == "sum":
            return loss.sum()
        counted = (count > 0) if options.reduction == "mean" else keep[:, :anchors]
        return loss.sum() / counted.sum().clamp(min=1)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1. A zero row stays zero, with a zero gradient; no square over- or underflows."""
    size = x.detach().abs().amax(-1, keepdim=True)  # the result does not depend on it, nor do its derivatives
    nonzero = size != 0  # a NaN stays one
    x = x / torch.where(nonzero, size, 1)
    square = (x * x).sum(-1, keepdim=True)
    return torch.where(nonzero, x / torch.where(nonzero, square, 1).sqrt(), 0)

"""The losses of other projects, from their published formulas; as plain as they can be, no code of theirs."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sup_contrast(features, labels=None, mask=None, *, temperature=0.07, base_temperature=0.07, contrast_mode="all"):
    """Khosla et al. 2020, equation 2, over views: (B, V, D) as it is; anchors without positives add 0."""
    samples, views = features.shape[:2]
    if mask is None:
        names = torch.arange(samples) if labels is None else labels.flatten()
        mask = (names[:, None] == names).to(features.dtype)
    losses = []
    for view in range(views if contrast_mode == "all" else 1):
        for i in range(samples):
            others = [(j, v) for j in range(samples) for v in range(views) if (j, v) != (i, view)]
            weights = torch.tensor([float(mask[i, j]) for j, _ in others], dtype=features.dtype)
            total = weights.sum()
            if total == 0:
                losses.append((features[i] * 0).sum())
                continue
            s = torch.stack([features[i, view] @ features[j, v] for j, v in others]) / temperature
            losses.append(-(weights * s.log_softmax(0)).sum() / total)
    return temperature / base_temperature * torch.stack(losses).mean()


def swfc(features, labels, counts, *, temperature, gamma, alpha):
    """MultiEMO, equations of section 3.4 as its code has them: class weights of sum 1, divided by the rows."""
    weights = ((counts.sum() / counts) ** alpha).double()
    weights = (weights / weights.sum()).float().to(features.dtype)  # which its code holds in float32
    z = F.normalize(features, dim=-1)
    total = (features * 0).sum()
    for i in range(len(z)):
        others = torch.arange(len(z)) != i
        positive = labels[others] == labels[i]
        if positive.any():
            p = (z[others] @ z[i] / temperature).softmax(0)[positive]
            total = total - weights[labels[i]] * (p.log() * (1 - p) ** gamma).mean()
    return total / len(z)


def masked_kl(log_pred, target, mask):
    """SDT: the sum over real rows of KL, divided by their number."""
    real = mask.flatten() != 0
    return F.kl_div(log_pred[real], target[real], reduction="sum") / real.sum()


def clip(images, texts, scale):
    """Radford et al. 2021: cross entropy of the right pair, both ways."""
    logits = scale * images @ texts.T
    pairs = torch.arange(len(logits))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def nt_xent(s: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Losses of the positive pairs of similarities ``s``, each among its anchor's negatives; 0 where there are none."""
    losses = []
    for i, p in positive.nonzero().tolist():
        if negative[i].any():
            losses.append(-torch.cat((s[i, p].reshape(1), s[i][negative[i]])).log_softmax(0)[0])
        else:
            losses.append(s[i, p] * 0)
    return torch.stack(losses)


def sup_con(s: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Losses of the anchors that have a positive."""
    rows = []
    for i in range(len(s)):
        if positive[i].any():
            log_p = s[i].masked_fill(~(positive[i] | negative[i]), -torch.inf).log_softmax(0)
            rows.append(-log_p[positive[i]].mean())
    return torch.stack(rows)

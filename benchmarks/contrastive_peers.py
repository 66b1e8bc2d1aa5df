"""What focal_contrastive is measured against: plain PyTorch in three forms, and other people's packages.

Formulas, all with unit rows and a temperature of 0.1: ``focal``, ours, with gamma 2 and the similarity factor,
detached; ``supcon``, gamma 0; ``swfc``, MultiEMO's, with gamma 2 and the probability factor, a gradient through it,
divided by the rows; ``pairs``, gamma 0 where rows 2 k and 2 k + 1 are the two views of one thing (SimCLR).
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.cell import Provider
from benchmarks.providers import Loss, compiled, optional, ours
from merc_kernels import focal_contrastive_loss

TEMPERATURE, GAMMA = 0.1, 2.0
_SWFC = {"focal": "probability", "detach_focal": False, "reduction": "batchmean"}
_CHANGES: dict[str, dict[str, Any]] = {"focal": {}, "supcon": {"gamma": 0.0}, "swfc": _SWFC, "pairs": {"gamma": 0.0}}
FORMULAS = tuple(_CHANGES)
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"temperature": TEMPERATURE, "gamma": GAMMA, **changes} for name, changes in _CHANGES.items()
}
CHUNK = 1 << 22  # elements of the matrix that the chunked form holds at a time
SELF = -1e4  # the exponential of what is excluded: 0


def merc(embeddings: Tensor, labels: Tensor, formula: str, *, backend: str | None) -> Tensor:
    """The operator."""
    return focal_contrastive_loss(embeddings, labels, **OPTIONS[formula], backend=backend)


def eager(embeddings: Tensor, labels: Tensor, formula: str) -> Tensor:
    """The lean N x N form: one product, one masked logsumexp, the factor, one masked row mean."""
    z = F.normalize(embeddings, dim=-1)
    total, anchors = lean_rows(z, z, labels, labels, 0, formula)
    return total / (len(z) if formula == "swfc" else anchors)


def chunked(embeddings: Tensor, labels: Tensor, formula: str) -> Tensor:
    """The lean form a strip of rows at a time, recomputed in the backward pass: what a careful user would write."""
    z = F.normalize(embeddings, dim=-1)
    step = max(1, CHUNK // len(z))
    total, anchors = z.new_zeros(()), z.new_zeros(())
    for begin in range(0, len(z), step):
        rows, names = z[begin : begin + step], labels[begin : begin + step]
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        part, counted = checkpoint(lean_rows, rows, z, names, labels, begin, formula, **options)
        total, anchors = total + part, anchors + counted
    return total / (len(z) if formula == "swfc" else anchors)


def lean_rows(rows: Tensor, z: Tensor, names: Tensor, labels: Tensor, begin: int, formula: str) -> list[Tensor]:
    """Sum of the losses of the anchors ``rows``, which stand in ``z`` from ``begin`` on; how many have a positive."""
    s = (rows / TEMPERATURE) @ z.T  # [R, N]
    s.diagonal(begin).fill_(SELF)
    log_p = s.log_softmax(-1)
    with torch.no_grad():
        positive = names[:, None] == labels
        positive.diagonal(begin).fill_(False)
        count = positive.sum(-1)
        weight = positive / count.clamp(min=1)[:, None].to(s.dtype)
        if formula == "focal":
            weight *= (s * (-TEMPERATURE / 2) + 0.5).square_()
    if formula == "swfc":
        log_p = (1 - log_p.exp()).square() * log_p
    return [-_dot(weight, log_p), (count > 0).sum()]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, with no temporary; torch.dot counts its elements in 32 bits."""
    pieces = zip(torch.split(a.view(-1), 1 << 30), torch.split(b.view(-1), 1 << 30), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in pieces]).sum()


def loop_over_anchors(embeddings: Tensor, labels: Tensor, formula: str) -> Tensor:
    """The shape of MultiEMO's published loss, written from its formula: a Python loop over the anchors."""
    z = F.normalize(embeddings, dim=-1)
    total, anchors = z.new_zeros(()), 0
    for i in range(len(z)):
        others = torch.arange(len(z), device=z.device) != i
        cosine = z[others] @ z[i]
        positive = labels[others] == labels[i]
        if positive.any():
            log_p = (cosine / TEMPERATURE).log_softmax(0)[positive]
            base = 1 - log_p.exp() if formula == "swfc" else (1 - cosine[positive].detach()) / 2
            total = total - (base**GAMMA * log_p).mean()
            anchors += 1
    return total / (len(z) if formula == "swfc" else anchors)


def peers(device: str) -> list[Provider]:
    """Every provider on a device, the absent ones too."""
    providers = ours(merc, device, FORMULAS)
    providers.append(Provider("eager", eager, formulas=FORMULAS, square=True))
    if device == "cuda":  # those whose float32 products are what torch allows
        plain = [p for p in providers if p.name in ("merc:triton", "merc:torch", "eager") and p.loss]
        providers += [replace(p, name=f"{p.name}, tf32", precision="high") for p in plain]
    metric_learning = ("pytorch-metric-learning", "pytorch_metric_learning.losses", _metric_learning)
    return [
        *providers,
        Provider("torch.compile", compiled(eager), formulas=FORMULAS, square=True),
        Provider("chunked", chunked, formulas=FORMULAS),
        Provider("loop over anchors", loop_over_anchors, formulas=("focal", "swfc"), square=True),
        optional(*metric_learning, formulas=("supcon", "pairs"), square=True),
        optional("lightly", "lightly.loss", _lightly, formulas=("pairs",), square=True),
    ]


def _metric_learning(losses: Any) -> Loss:
    loss = losses.SupConLoss(temperature=TEMPERATURE)
    return lambda embeddings, labels, formula: loss(embeddings, labels)


def _lightly(loss: Any) -> Loss:
    """It has no supervised contrastive loss; its NT-Xent takes the two views apart."""
    pairs = loss.NTXentLoss(temperature=TEMPERATURE)
    return lambda embeddings, labels, formula: pairs(embeddings[0::2], embeddings[1::2])

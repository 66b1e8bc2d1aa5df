"""Losses of pytorch-metric-learning (https://github.com/KevinMusgrave/pytorch-metric-learning)."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merc_kernels._shared import checks
from merc_kernels.compat.labels import NO_CLASS, integers
from merc_kernels.focal_contrastive import focal_contrastive_loss


class _Pairs(NamedTuple):
    """The tensors of a call; without refs a row is compared with the other rows."""

    embeddings: Tensor
    labels: Tensor
    refs: Tensor | None
    ref_labels: Tensor | None


class _MetricLoss(nn.Module):
    """The package's constructor and call; what cannot be honoured is refused.

    Args:
        temperature: divides.
        distance: None, or the package's ``CosineSimilarity()`` or ``DotProductSimilarity(...)``.
        reducer: None for the loss's own, or one of those that ``reducers`` names.
        embedding_regularizer: None; add its loss to this one.
        embedding_reg_weight: unused.
        collect_stats: unused; no statistics are kept.
        backend: a key of `merc_kernels.backends`, or None.

    Raises:
        ValueError: what cannot be honoured.
    """

    own_reducer: ClassVar[str]
    reducers: ClassVar[dict[str, str]]  # name → what it is here

    def __init__(
        self,
        temperature: float | Tensor,
        *,
        distance: object = None,
        reducer: object = None,
        embedding_regularizer: object = None,
        embedding_reg_weight: float = 1,
        collect_stats: object = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        instead = f"keep pytorch_metric_learning.losses.{type(self).__name__} for another"
        if embedding_regularizer is not None:
            checks.fail("embedding_regularizer", "None (add its loss to this one)", type(embedding_regularizer))
        self.normalize = True
        if distance is not None:
            name, p, power = type(distance).__name__, getattr(distance, "p", 2), getattr(distance, "power", 1)
            self.normalize = bool(getattr(distance, "normalize_embeddings", True))
            known = name in ("CosineSimilarity", "DotProductSimilarity")
            if not known or power != 1 or (p != 2 and self.normalize):
                wanted = "CosineSimilarity() or DotProductSimilarity(), with p=2 and power=1"
                checks.fail("distance", f"{wanted} ({instead})", f"p={p}, power={power}" if known else name)
        name = self.own_reducer if reducer is None else _name(reducer)
        if name not in self.reducers:
            checks.fail("reducer", f"{' or '.join(self.reducers)} ({instead})", name)
        self.reduction = self.reducers[name]
        if isinstance(temperature, Tensor):
            checks.tensor("temperature", temperature, checks.FLOAT, None, (), (1,))
        else:
            checks.temperature("temperature", temperature)
        self.temperature = temperature
        self.backend = backend

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``embeddings`` ``(N, D)`` with ``labels`` ``(N,)``, of any integers.

        Args:
            embeddings: the anchors.
            labels: their classes.
            indices_tuple: None: every pair counts.
            ref_emb: ``(M, D)``, what the anchors are compared with; None: each other.
            ref_labels: ``(M,)``.

        Returns:
            A scalar; 0, connected to the graph, where there is no positive or no negative pair.
        """
        if indices_tuple is not None:
            instead = f"keep pytorch_metric_learning.losses.{type(self).__name__} for a miner or a CrossBatchMemory"
            checks.fail("indices_tuple", f"None, as every pair counts ({instead})", type(indices_tuple))
        checks.tensor("embeddings", embeddings, checks.FLOAT, None, ("N", "D"))
        rows, width = embeddings.shape
        device = embeddings.device
        labels = _labels("labels", labels, device, rows)
        if ref_emb is None:
            return self._loss(_Pairs(embeddings, labels, None, None))
        checks.tensor("ref_emb", ref_emb, checks.FLOAT, device, ("M", width))
        ref_labels = _labels("ref_labels", ref_labels, device, len(ref_emb))
        loss = self._loss(_Pairs(embeddings, labels, ref_emb, ref_labels))
        return loss * 0 if rows * len(ref_emb) <= 2 else loss  # there no more than one pair of either kind is too few

    def _loss(self, pairs: _Pairs) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The options."""
        temperature = "Parameter" if isinstance(self.temperature, nn.Parameter) else self.temperature
        shown = f"temperature={temperature}, normalize={self.normalize}, reduction={self.reduction!r}"
        return f"{shown}, backend={self.backend!r}"


def _name(reducer: object) -> str:
    name = type(reducer).__name__
    inner = getattr(reducer, "reducer", None) if name == "PerAnchorReducer" else None
    return name if inner is None else f"{name}({type(inner).__name__}())"


def _labels(name: str, labels: Tensor | None, device: torch.device, rows: int) -> Tensor:
    labels = integers(name, labels, device)
    if labels.shape != (rows,):
        checks.fail(name, f"a tensor of shape ({rows},)", labels)
    return labels


class SupConLoss(_MetricLoss):
    """Supervised contrastive loss: the call of pytorch-metric-learning's, and its options as `_MetricLoss` has them.

    The mean over the anchors whose loss is above 0 (``AvgNonZeroReducer``), over all (``MeanReducer``), or the sum.
    """

    own_reducer = "AvgNonZeroReducer"
    reducers: ClassVar = {"AvgNonZeroReducer": "none", "MeanReducer": "batchmean", "SumReducer": "sum"}

    def __init__(self, temperature: float | Tensor = 0.1, **options: Any) -> None:
        super().__init__(temperature, **options)

    def _loss(self, pairs: _Pairs) -> Tensor:
        every = pairs.labels if pairs.ref_labels is None else torch.cat((pairs.labels, pairs.ref_labels))
        loss = focal_contrastive_loss(
            pairs.embeddings,
            pairs.labels,
            temperature=self.temperature,
            gamma=0.0,
            ref_embeddings=pairs.refs,
            ref_labels=pairs.ref_labels,
            ref_only=pairs.refs is not None,
            normalize=self.normalize,
            ignore_index=NO_CLASS,
            backend=self.backend,
            reduction=self.reduction,  # type: ignore[arg-type]
        )
        if self.reduction == "none":
            counts = ~(loss <= 0)  # an anchor whose loss rounds to 0 is left out there; a NaN is not, which it is there
            loss = torch.where(counts, loss, 0).sum() / counts.sum().clamp(min=1)
        return loss * (every != every[:1]).any()  # 0 without a negative pair


class NTXentLoss(_MetricLoss):
    """Cross entropy of each positive pair among the anchor's negatives, in plain PyTorch: N x M memory.

    A pair's denominator leaves out the anchor's other positives, so this is not `SupConLoss`, and not fused. Where each
    anchor has one positive, as with two views, both are the same number: take `SupConLoss`.

    The mean over pairs (``MeanReducer``), the sum, or the mean over anchors of the mean over their pairs
    (``PerAnchorReducer``).
    """

    own_reducer = "MeanReducer"
    reducers: ClassVar = {
        "MeanReducer": "pairs",
        "PerAnchorReducer(MeanReducer())": "all anchors",
        "PerAnchorReducer(AvgNonZeroReducer())": "anchors",
    }

    def __init__(self, temperature: float | Tensor = 0.07, **options: Any) -> None:
        super().__init__(temperature, **options)

    def _loss(self, pairs: _Pairs) -> Tensor:
        dtype = torch.promote_types(pairs.embeddings.dtype, torch.float32)
        with torch.autocast(pairs.embeddings.device.type, enabled=False):
            rows = pairs.embeddings.to(dtype)
            columns = rows if pairs.refs is None else pairs.refs.to(dtype)
            if self.normalize:
                rows, columns = F.normalize(rows, dim=-1), F.normalize(columns, dim=-1)
            s = rows @ columns.mT / self.temperature  # [N, M]
            names = pairs.labels if pairs.ref_labels is None else pairs.ref_labels
            same = pairs.labels[:, None] == names
            positive = same if pairs.refs is not None else same.clone().fill_diagonal_(False)
            negatives = s.masked_fill(same, torch.finfo(dtype).min).logsumexp(-1, keepdim=True)
            losses = torch.where(positive, -F.logsigmoid(s - negatives), 0)
            count = positive.sum(-1)
            if self.reduction == "pairs":
                return losses.sum() / count.sum().clamp(min=1)
            of_anchors = losses.sum(-1) / count.clamp(min=1)
            counted = count.clamp(max=1).sum().clamp(min=1) if self.reduction == "anchors" else max(1, len(rows))
            return of_anchors.sum() / counted

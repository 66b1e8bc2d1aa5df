"""The loss of SupContrast (https://github.com/HobbitLong/SupContrast)."""

import torch
from torch import Tensor, nn

from merc_kernels._shared import checks
from merc_kernels.compat.labels import NO_CLASS, integers
from merc_kernels.focal_contrastive import focal_contrastive_loss


class SupContrastLoss(nn.Module):
    """SupContrast's ``SupConLoss``: supervised contrastive loss of several views of each sample.

    The mean over all views (of the first alone for ``contrast_mode="one"``), times temperature / base_temperature. An
    anchor without a positive adds 0. As there, the features are taken as they are.

    Args:
        temperature: divides.
        contrast_mode: ``"all"``: every view is an anchor; ``"one"``: the first.
        base_temperature: divides the result.
        backend: a key of `merc_kernels.backends`, or None.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        contrast_mode: str = "all",
        base_temperature: float = 0.07,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.choice("contrast_mode", contrast_mode, ("all", "one"))
        checks.temperature("temperature", temperature)
        checks.number("base_temperature", base_temperature, above=0)
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature
        self.backend = backend

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The loss of ``features`` ``(B, V, ...)``.

        Args:
            features: V views of B samples.
            labels: ``(B,)``; without labels and mask only the views of the same sample are positives (SimCLR).
            mask: ``(B, B)``, how much sample j is a positive of sample i; it may be asymmetric.

        Raises:
            ValueError: both labels and mask, or shapes that do not match.
        """
        if not isinstance(features, Tensor) or features.dim() < 3:
            checks.fail("features", "a tensor of shape (B, V, ...)", features)
        features = features.flatten(2)
        checks.tensor("features", features, checks.FLOAT, None, ("B", "V", "D"))
        samples = features.shape[0]
        if mask is not None:
            if labels is not None:
                checks.fail("mask", "None where labels are given", mask)
            if not isinstance(mask, Tensor) or mask.shape != (samples, samples):
                checks.fail("mask", f"a tensor of shape ({samples}, {samples})", mask)
            loss = self._masked(features, mask)
        else:
            if labels is None:
                classes = torch.arange(samples, device=features.device)
            else:
                classes = integers("labels", labels, features.device).flatten()
                if classes.shape != (samples,):
                    checks.fail("labels", f"a tensor of shape ({samples},)", labels)
            loss = self._contrast(features, classes, "batchmean")
        return loss * (self.temperature / self.base_temperature)

    def _contrast(self, features: Tensor, classes: Tensor, reduction: str) -> Tensor:
        """The supervised contrastive loss; of each anchor, view by view, for ``reduction="none"``."""
        views = features.shape[1]
        rows, names = features.transpose(0, 1), classes.expand(views, -1)  # [V, B, D], [V, B]
        anchors = views if self.contrast_mode == "all" else 1
        others = anchors < views
        return focal_contrastive_loss(
            rows[:anchors].flatten(0, 1),
            names[:anchors].flatten(),
            temperature=self.temperature,
            gamma=0.0,
            ref_embeddings=rows[anchors:].flatten(0, 1) if others else None,
            ref_labels=names[anchors:].flatten() if others else None,
            normalize=False,
            ignore_index=NO_CLASS,
            backend=self.backend,
            reduction=reduction,  # type: ignore[arg-type]
        )

    def _masked(self, features: Tensor, mask: Tensor) -> Tensor:
        """Positives by a mask: L_i sum_j m_ij - sum_j m_ij s_ij of an anchor, over sum_j m_ij; no matrix but the mask.

        Where all others are positives the loss of an anchor is L_i less their mean s, which is linear in their sum.
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        features, mask = features.to(dtype), mask.to(features.device, dtype)
        samples, views, _ = features.shape
        shape = (views if self.contrast_mode == "all" else min(1, views), samples)
        unlabelled = torch.zeros(samples, dtype=torch.int64, device=features.device)
        all_positive = self._contrast(features, unlabelled, "none").view(shape).mT  # [B, anchors]
        with torch.autocast(features.device.type, enabled=False):
            anchors = features[:, : shape[0]]  # [B, anchors, D]
            of_samples = features.sum(1)  # [B, D]
            others = of_samples.sum(0) - anchors
            mean = (anchors * others).sum(-1) / max(1, samples * views - 1)
            itself = mask.diagonal()[:, None]
            weight = views * mask.sum(1, keepdim=True) - itself  # [B, 1]
            positives = (mask @ of_samples)[:, None] - itself[..., None] * anchors
            drawn = (anchors * positives).sum(-1)
            count = torch.where(weight < 1e-6, 1, weight)
            loss = weight * all_positive + (weight * mean - drawn) / self.temperature
            return (loss / count).sum() / max(1, loss.numel())

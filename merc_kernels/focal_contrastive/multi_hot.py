"""The loss of sets of labels on the backend ``torch``: the reference some anchors at a time, recomputed backward.

Memory is linear in the rows, and first and second derivatives are those of autograd.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from merc_kernels.focal_contrastive.reference import anchor_losses, reduced, stacked

_CHUNK = 1 << 20  # elements of the matrix at a time


def focal_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    prototypes: Tensor | None,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    class_weights: Tensor | None,
    temperature: Tensor | None,
    options: FocalContrastiveOptions,
) -> Tensor:
    """`merc_kernels.focal_contrastive_loss` of tensors that were checked."""
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = stacked(embeddings, labels, prototypes, refs, ref_labels, class_weights, temperature, options)
        groups, columns, _ = rows.z.shape
        step = max(1, _CHUNK // max(1, groups * columns))
        parts = []
        for begin in range(0, max(1, rows.anchors), step):
            end = min(begin + step, rows.anchors)
            arguments = (rows, begin, end, temperature, options)
            parts.append(checkpoint(anchor_losses, *arguments, use_reentrant=False, preserve_rng_state=False))
        loss, count = (torch.cat(x, 1) for x in zip(*parts, strict=True))
        return reduced(loss, count, rows, class_weights, options, grouped=embeddings.dim() == 3)

"""Focal contrastive and distillation losses for PyTorch."""

from merc_kernels import reference
from merc_kernels._library import backends, use_backend
from merc_kernels._version import __version__
from merc_kernels.functional import class_balanced_weights, focal_contrastive_loss, kd_divergence
from merc_kernels.losses import FocalContrastiveLoss, KDDivergence

__all__ = [
    "FocalContrastiveLoss",
    "KDDivergence",
    "__version__",
    "backends",
    "class_balanced_weights",
    "focal_contrastive_loss",
    "kd_divergence",
    "reference",
    "use_backend",
]

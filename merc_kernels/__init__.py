"""Focal contrastive and distillation losses for PyTorch."""

from merc_kernels import compat, distributed, reference
from merc_kernels._shared.backends import backends, default_backend, use_backend
from merc_kernels._version import __version__
from merc_kernels.bank import MemoryBank
from merc_kernels.focal_contrastive import FocalContrastiveLoss, class_balanced_weights, focal_contrastive_loss
from merc_kernels.gradient_cache import cached_backward
from merc_kernels.kd_divergence import KDDivergence, kd_divergence

__all__ = [
    "FocalContrastiveLoss",
    "KDDivergence",
    "MemoryBank",
    "__version__",
    "backends",
    "cached_backward",
    "class_balanced_weights",
    "compat",
    "default_backend",
    "distributed",
    "focal_contrastive_loss",
    "kd_divergence",
    "reference",
    "use_backend",
]

"""The focal contrastive loss."""

from merc_kernels.focal_contrastive.class_weights import class_balanced_weights
from merc_kernels.focal_contrastive.loss import FocalContrastiveLoss, focal_contrastive_loss
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions

__all__ = ["FocalContrastiveLoss", "FocalContrastiveOptions", "class_balanced_weights", "focal_contrastive_loss"]

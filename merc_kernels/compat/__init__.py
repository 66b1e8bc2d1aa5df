"""The losses under the names and with the calls of the projects that people have: one import changes.

Each has the value and the gradient of its model, up to rounding; what a model takes and this cannot honour is refused.
"""

from merc_kernels.compat.clip import ClipLoss
from merc_kernels.compat.masked import MaskedKLDivLoss, masked_kd_divergence
from merc_kernels.compat.metric_learning import NTXentLoss, SupConLoss
from merc_kernels.compat.multiemo import SampleWeightedFocalContrastiveLoss
from merc_kernels.compat.sup_contrast import SupContrastLoss

__all__ = [
    "ClipLoss",
    "MaskedKLDivLoss",
    "NTXentLoss",
    "SampleWeightedFocalContrastiveLoss",
    "SupConLoss",
    "SupContrastLoss",
    "masked_kd_divergence",
]

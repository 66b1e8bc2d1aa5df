"""The divergence of a student from its teacher."""

from merc_kernels.kd_divergence.loss import KDDivergence, kd_divergence
from merc_kernels.kd_divergence.options import KDDivergenceOptions

__all__ = ["KDDivergence", "KDDivergenceOptions", "kd_divergence"]

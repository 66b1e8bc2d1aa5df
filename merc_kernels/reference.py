"""The two losses in plain PyTorch: N x N memory, twice differentiable; what every backend is held to.

The arguments are those of `merc_kernels.focal_contrastive_loss` and `merc_kernels.kd_divergence`; ``backend`` may be
None or ``"reference"``. The code is in the ``reference.py`` of either loss.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

from torch import Tensor

from merc_kernels import focal_contrastive as _focal_contrastive
from merc_kernels._shared import checks
from merc_kernels.kd_divergence import loss as _kd_divergence

P = ParamSpec("P")


def _on_reference(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    @functools.wraps(loss)
    def run(*tensors: P.args, **options: P.kwargs) -> Tensor:
        if options.get("backend") not in (None, "reference"):
            checks.fail("backend", "None or 'reference'", options["backend"])
        options["backend"] = "reference"
        return loss(*tensors, **options)

    return run


focal_contrastive_loss = _on_reference(_focal_contrastive.focal_contrastive_loss)
kd_divergence = _on_reference(_kd_divergence.kd_divergence)

"""Labels as the projects pass them: any integers are classes."""

import torch
from torch import Tensor

from merc_kernels._shared import checks

NO_CLASS = torch.iinfo(torch.int64).min  # the ignore_index of losses that know none


def integers(name: str, labels: object, device: torch.device) -> Tensor:
    """The labels as int64 on ``device``.

    Raises:
        ValueError: they are no tensor of integers.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        checks.fail(name, "a tensor of integers", labels)
    return labels.to(device, torch.int64)

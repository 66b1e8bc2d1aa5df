"""Class weights from the number of rows of each class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from merc_kernels._shared import checks


def class_balanced_weights(class_counts: Sequence[float] | Tensor, alpha: float = 1.0) -> Tensor:
    r"""Class weights :math:`(N / n_c)^\alpha`, scaled to mean 1 over the classes present; 0 for an absent class.

    The weights of MultiEMO (Shi and Huang, 2023, https://aclanthology.org/2023.acl-long.824), but for the
    scale: there they sum to 1.

    Args:
        class_counts: n_c, the number of rows of each class: a sequence of numbers, a ``(C,)`` array, or a ``(C,)``
            tensor of integers or floats.
        alpha: >= 0; 0 weighs the classes present alike.

    Returns:
        ``(C,)`` float32 (float64 for a float64 tensor), on the tensor's device.

    Raises:
        ValueError: counts that are negative, not finite or all 0 (those of a tensor on a GPU are looked at
            only under ``MERC_CHECK=1``); an alpha that is negative.
    """
    checks.number("alpha", alpha)
    (class_counts,) = checks.untyped(class_counts)
    if not isinstance(class_counts, Tensor) and hasattr(class_counts, "tolist"):  # an array
        class_counts = class_counts.tolist()
    _check(class_counts)
    if isinstance(class_counts, Tensor):
        double = class_counts.dtype == torch.float64
        counts = class_counts.detach().to(torch.float64 if double else torch.float32)
    else:
        counts = torch.tensor(list(class_counts), dtype=torch.float32)
    present = counts > 0
    exponent = (-alpha * torch.where(present, counts, 1).log()).masked_fill(~present, -torch.inf)
    return torch.where(present, exponent.softmax(0) * present.sum(), 0)  # N cancels, no power overflows


def _check(counts: object) -> None:
    name, expected = "class_counts", "finite numbers >= 0, not all 0"
    if isinstance(counts, Tensor):
        if counts.dim() != 1 or counts.numel() == 0 or counts.is_complex() or counts.dtype == torch.bool:
            checks.fail(name, "an integer or floating tensor of shape (C,), C > 0", counts)
        if checks.readable(counts):
            checks.elements(name, expected, counts, (counts >= 0) & (counts < torch.inf))
            if not bool(counts.any()):
                checks.fail(name, expected, counts.tolist())
        return
    if not isinstance(counts, Sequence) or isinstance(counts, str) or len(counts) == 0:
        checks.fail(name, "a sequence of numbers, or a tensor of shape (C,)", counts)
    for index, count in enumerate(counts):
        checks.number(f"{name}[{index}]", count)
    if not any(counts):
        checks.fail(name, expected, counts)

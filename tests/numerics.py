"""One comparison, one tolerance table."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Largest error, relative to the largest element of the truth (in float64: to 1 where that is less).
# A rounding of the dtype is 2**-53, 2**-24, 2**-8 and 2**-11.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-6,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}


def error(actual: Tensor, truth: Tensor) -> float:
    """Largest absolute difference; a NaN on either side is infinite, the same infinity on both sides is none."""
    assert actual.shape == truth.shape, (actual.shape, truth.shape)
    actual, truth = actual.detach().double(), truth.detach().double()
    difference = (actual - truth).abs().masked_fill(actual == truth, 0)
    return float(difference.nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0


def _size(truth: Tensor) -> float:
    return float(truth.detach().abs().max()) if truth.numel() else 0.0


def assert_equal_fp64(actual: Tensor, truth: Tensor, name: str = "") -> None:
    """Both in float64 and the same up to rounding."""
    assert actual.dtype == truth.dtype == torch.float64
    size = _size(truth.masked_fill(truth.isinf(), 0))
    limit = TOLERANCE[torch.float64] * max(1.0, size)
    assert error(actual, truth) <= limit, f"{name}: error {error(actual, truth):.3g} over {limit:.3g}"


def assert_accurate(actual: Tensor, plain: Tensor | Sequence[Tensor], truth: Tensor, name: str = "") -> None:
    """|actual - truth| <= |plain - truth| + tolerance; ``plain`` is eager PyTorch in the dtype, ``truth`` float64.

    One result of eager PyTorch may be near an ill-conditioned truth by chance; of several, the farthest counts.
    """
    worst = max(error(one, truth) for one in ([plain] if isinstance(plain, Tensor) else plain))
    limit = worst + TOLERANCE[actual.dtype] * _size(truth)
    assert error(actual, truth) <= limit, f"{name}: error {error(actual, truth):.3g} over {limit:.3g}"

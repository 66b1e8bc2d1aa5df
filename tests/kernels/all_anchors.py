"""The backward pass of one rank's rows, where the others are anchors too, by statistics that came from elsewhere."""

from typing import Any

import torch
from torch import Tensor

from merc_kernels.focal_contrastive.options import Focal, FocalContrastiveOptions
from tests.numerics import assert_equal_fp64

CLASSES = 4


def gradients(run: Any, back: Any, rows: tuple[Any, ...], options: FocalContrastiveOptions, far: int) -> list[Tensor]:
    """Of the embeddings and prototypes; the last ``far`` rows of the whole batch are refs."""
    x, y, prototypes, weights, tau = rows
    numbers, own = options.numbers, x.shape[-2] - far
    vectors = (x[..., :own, :], prototypes, x[..., own:, :] if far else None)
    arguments = (vectors[0], y[..., :own], *vectors[1:], y[..., own:] if far else None, weights, tau)
    _, divisor, z, norms, stats, index = run(*arguments, *numbers)
    if far:
        whole = run(x, y, prototypes, None, None, weights, tau, *numbers)[4]
        total = x.shape[-2]
        stats = torch.cat((whole[..., :own, :], whole[..., total:, :], whole[..., own:total, :]), -2)
    saved = (torch.ones_like(divisor), torch.ones_like(divisor), z, norms, stats, index)
    made = back(*saved, *vectors, tau, *numbers[:-1], True, prototypes is not None, False, False, far > 0)
    return [*made[:2]]


def check(run: Any, back: Any, focal: Focal, own: int = 37, far: int = 70) -> None:
    """Values in float64, of the operators of both passes of a backend."""
    torch.manual_seed(0)
    for groups, prototypes, anchors, normalize in (
        (0, False, False, True),
        (2, True, False, True),
        (0, True, True, False),
    ):
        shape = (groups,) if groups else ()
        x = torch.randn(*shape, own + far, 12, dtype=torch.float64) * (1.0 if normalize else 0.3)
        y = torch.randint(CLASSES, (*shape, own + far))
        y[..., ::9] = -100
        y[..., own + 3] = 77 if not prototypes else -100  # alone: an anchor without a positive
        centers = torch.randn(CLASSES, 12, dtype=torch.float64) if prototypes else None
        weights = torch.rand(CLASSES, dtype=torch.float64) if prototypes else None
        tau = torch.tensor(0.3, dtype=torch.float64) if anchors else None
        options = FocalContrastiveOptions(
            focal=focal,
            detach_focal=groups == 0 and not anchors,
            prototype_anchors=anchors,
            normalize=normalize,
            reduction="sum",
        )
        rows = (x, y, centers, weights, tau)
        whole = gradients(run, back, rows, options, 0)
        part = gradients(run, back, rows, options, far)
        assert_equal_fp64(part[0], whole[0][..., :own, :], "embeddings")
        if prototypes:
            assert_equal_fp64(part[1], whole[1], "prototypes")

"""The two operators on a GPU, and their backends."""

from collections.abc import Callable

import torch
from torch import Tensor

from merc_kernels import backends, focal_contrastive_loss, kd_divergence

OPERATORS = ("focal_contrastive", "kd_divergence")
FUSED = ("cuda", "triton", "torch")
Loss = Callable[..., Tensor]


def why_not(backend: str) -> str | None:
    """Why a backend is not there; None where it is."""
    state = backends()[backend]
    return None if state == "on" else state


def call(operator: str, backend: str | None, **options) -> Loss:
    """The operator as a loss of two tensors."""
    loss = focal_contrastive_loss if operator == "focal_contrastive" else kd_divergence
    return lambda x, other: loss(x, other, backend=backend, **options)


def inputs(operator: str, rows: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """What requires a gradient, and the labels or the teacher."""
    x = torch.randn(rows, width).to("cuda", dtype).requires_grad_()
    if operator == "focal_contrastive":
        labels = torch.randint(5, (rows,))
        labels[::7] = -100
        return x, labels.cuda()
    return x, torch.randn(rows, width).to("cuda", dtype)


def step(loss: Loss, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    value = loss(x, other)
    return value.detach(), torch.autograd.grad(value, x)[0]

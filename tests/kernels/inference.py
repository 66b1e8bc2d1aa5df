"""Arguments made under `torch.inference_mode`, which autograd refuses to keep for a backward pass."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Loss = Callable[..., Tensor]


def kd_arguments() -> dict[str, Any]:
    """Of `kd_divergence`; the student alone requires a gradient."""
    return {
        "student_logits": torch.randn(5, 4, requires_grad=True),
        "teacher_logits": torch.randn(5, 4),
        "labels": torch.tensor([0, 1, -100, 3, 2]),
        "row_weights": torch.rand(5),
        "temperature": torch.rand(5) + 1,
        "ce_weight": 0.5,
    }


def focal_arguments() -> dict[str, Any]:
    """Of `focal_contrastive_loss`; the embeddings alone require a gradient."""
    return {
        "embeddings": torch.randn(6, 4, requires_grad=True),
        "labels": torch.arange(6) % 3,
        "prototypes": torch.randn(3, 4),
        "ref_embeddings": torch.randn(4, 4),
        "ref_labels": torch.arange(4) % 3,
        "class_weights": torch.tensor([0.5, 1.0, 1.5]),
        "temperature": torch.tensor(0.3),
    }


def made_in_inference_mode(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One argument after the other, then all that need no gradient."""
    with torch.inference_mode():
        twins = {name: x.clone() for name, x in arguments.items() if isinstance(x, Tensor) and not x.requires_grad}
    for name, twin in twins.items():
        yield arguments | {name: twin}
    yield arguments | twins


def value_and_gradient(loss: Loss, arguments: dict[str, Any]) -> list[Tensor]:
    value = loss(**arguments)
    leaf = next(x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaf)]


def check(loss: Loss, arguments: dict[str, Any]) -> None:
    """They count as any other; and so do whole calls under `torch.inference_mode` and `torch.no_grad`."""
    truth = value_and_gradient(loss, arguments)
    for unusual in made_in_inference_mode(arguments):
        for value, exact in zip(value_and_gradient(loss, unusual), truth, strict=True):
            assert torch.equal(value, exact)
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                torch.testing.assert_close(loss(**unusual), truth[0])

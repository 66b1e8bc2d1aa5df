"""First derivatives only: what a fused backend says when it is differentiated twice."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


def refuse(*_: Any) -> NoReturn:
    """The backward pass of a backward pass."""
    raise RuntimeError("a fused backend has first derivatives only; for second ones use backend='reference'")


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        refuse()


def differentiable_once(gradient: Tensor, inputs: Sequence[Tensor | None]) -> Tensor:
    """``gradient``, which depends on ``inputs`` in ways autograd did not see: differentiating it again raises."""
    once: Tensor = _Once.apply(gradient, *inputs)  # type: ignore[no-untyped-call]
    return once

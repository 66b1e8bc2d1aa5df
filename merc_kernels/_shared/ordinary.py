"""Tensors that autograd may keep for a backward pass."""

from typing import Any

import torch
from torch import Tensor

_library: Any = torch.library.Library("merc", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("copied(Tensor x) -> Tensor")
_library.impl("copied", torch.clone, "CompositeExplicitAutograd")
torch.library.register_fake("merc::copied", torch.clone)


def ordinary(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors; copies of those made under `torch.inference_mode`, which autograd refuses to keep.

    What a compiled graph is given cannot be asked: there all that need no gradient are copied, by an operator that no
    compiler takes out.
    """
    if not torch.is_grad_enabled():
        return tensors
    if not torch.compiler.is_compiling():
        return ordinary_eager(tensors)
    if torch.compiler.is_exporting():
        return tensors
    return tuple([x if x is None or x.requires_grad else torch.ops.merc.copied.default(x) for x in tensors])


def ordinary_eager(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same where gradients are on and nothing is compiled."""
    for x in tensors:  # a plain loop: small batches feel every microsecond
        if x is not None and x.is_inference():
            return tuple([x.clone() if x is not None and x.is_inference() else x for x in tensors])
    return tensors

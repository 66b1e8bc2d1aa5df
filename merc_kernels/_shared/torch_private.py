"""Every private name of torch that is used here, each with what stands in for it in a torch that has it not."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _find(path: str) -> Any:
    """What ``torch.path`` is; None where there is no such name."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


_peek_interpreter_stack = _find("_C._functorch.peek_interpreter_stack")
_is_functorch_wrapped_tensor = _find("_C._functorch.is_functorch_wrapped_tensor")
_auto_dispatch_below_autograd = _find("_C._AutoDispatchBelowAutograd")


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode autograd is at work.

    Without the names: False, and torch itself says that a fused operator has no such derivative.
    """
    stack = None if _peek_interpreter_stack is None else _peek_interpreter_stack()
    return stack is not None or getattr(forward_ad, "_current_level", -1) >= 0


def wrapped(tensor: Tensor) -> bool:
    """Whether ``tensor`` is what a torch.func transform made of another; without the name: whether it has no memory."""
    if _is_functorch_wrapped_tensor is not None:
        found: bool = _is_functorch_wrapped_tensor(tensor)
        return found
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return True
    return False


def below_autograd(operator: Any) -> Callable[..., Any]:
    """``operator`` past the autograd registered for it; without the name: with it, which inside a Function is idle."""

    def call(*inputs: Any) -> Any:
        with (_auto_dispatch_below_autograd or contextlib.nullcontext)():
            return operator(*inputs)

    return call

"""Every private name of torch that is used here, each with what stands in for it in a torch that has it not."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

T = TypeVar("T")


def _find(path: str) -> Any:
    """What ``torch.path`` is; None where there is no such name."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def no_memory(tensor: Tensor) -> bool:
    """Whether a tensor stands for others, as in what `is_grads_batched` makes of a backward pass."""
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return True
    return False


def _key_sets() -> dict[str, Any]:
    """By the type of a device, the dispatch keys of its kernels; empty where torch has them not."""
    keys, key_set = _find("_C.DispatchKey"), _find("_C.DispatchKeySet")
    if keys is None or key_set is None:
        return {}
    return {"cpu": key_set(keys.CPU), "cuda": key_set(keys.CUDA)}


FALLBACKS: dict[str, Any] = {
    "transform": lambda: None,  # torch itself then says that a fused operator has no such derivative
    "is_wrapped": no_memory,
    "past_autograd": contextlib.nullcontext,  # inside an autograd.Function the registered autograd is idle
    "modes": lambda: 1,  # there may be one
    "key_sets": {},
    "tracing_state": lambda: torch.jit.is_tracing() or None,  # type: ignore[attr-defined, no-untyped-call]
    "set_tracing_state": lambda state: None,  # torch.jit.trace then warns of what the checks read
}
transform: Callable[[], Any] = _find("_C._functorch.peek_interpreter_stack") or FALLBACKS["transform"]
"""The torch.func transform at work, or None."""
is_wrapped: Callable[[Tensor], bool] = _find("_C._functorch.is_functorch_wrapped_tensor") or FALLBACKS["is_wrapped"]
"""Whether a tensor is what a torch.func transform made of another."""
past_autograd: Callable[[], Any] = _find("_C._AutoDispatchBelowAutograd") or FALLBACKS["past_autograd"]
"""A context in which operators run past the autograd registered for them."""
modes: Callable[[], int] = _find("_C._len_torch_dispatch_stack") or FALLBACKS["modes"]
"""How many modes want to see what operators run."""
key_sets: dict[str, Any] = _key_sets()
tracing_state: Callable[[], Any] = _find("_C._get_tracing_state") or FALLBACKS["tracing_state"]
"""What `torch.jit.trace` has recorded; None where it is not at work."""
set_tracing_state: Callable[[Any], None] = _find("_C._set_tracing_state") or FALLBACKS["set_tracing_state"]
"""Have `torch.jit.trace` record there; None: nowhere."""


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode autograd is at work: fused operators have neither."""
    return transform() is not None or getattr(forward_ad, "_current_level", -1) >= 0


def untraced(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)``, unseen by `torch.jit.trace`: sizes are numbers there, and tensors may be read."""
    state = tracing_state()
    if state is None:
        return function(*arguments)
    set_tracing_state(None)
    try:
        return function(*arguments)
    finally:
        set_tracing_state(state)


def below_autograd(operator: Any) -> Callable[..., Any]:
    """``operator``, whose first argument is a tensor, past the autograd registered for it."""
    straight = getattr(getattr(operator, "_handle", None), "redispatch_boxed", None)  # what its redispatch calls

    def call(*inputs: Any) -> Any:
        x = inputs[0]
        keys = key_sets.get("cpu" if x.is_cpu else x.device.type)
        if keys is not None and straight is not None and modes() == 0:  # small batches feel every microsecond
            return straight(keys, *inputs)
        with past_autograd():
            return operator(*inputs)

    return call


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without its search for what torch.func left: callers have looked at their tensors."""
    apply: Callable[..., Any] = getattr(super(torch.autograd.Function, function), "apply", function.apply)
    return apply

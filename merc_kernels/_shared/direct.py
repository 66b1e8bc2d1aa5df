"""Operators of the compiled extension on CPU tensors, called without the dispatcher."""

from collections.abc import Callable
from typing import Any

import torch

from merc_kernels._shared import backends, torch_private


def direct(name: str, operator: Any, tensors: int) -> Callable[..., Any]:
    """``operator``; on CPU tensors past the dispatcher, whose boxing takes longer than a small loss does.

    Args:
        name: of the function of the extension that computes it.
        operator: ``torch.ops.merc.name.default``.
        tensors: how many arguments are tensors or None; they come first, and the first is a tensor.
    """
    dispatched, call = torch_private.below_autograd(operator), getattr(backends.extension(), name)
    handles = getattr(torch._C, "_aoti", None)  # private to torch: without it, the dispatcher's way
    give = getattr(handles, "unsafe_alloc_void_ptr_from_tensor", None)  # a handle, which whoever receives it owns
    take = getattr(handles, "alloc_tensors_by_stealing_from_void_ptrs", None)  # its sibling for one tensor leaks it
    if give is None or take is None:
        return dispatched
    modes, is_tracing = torch._C._len_torch_dispatch_stack, torch._C._is_tracing

    def forward(*inputs: Any) -> Any:
        if not inputs[0].is_cpu or modes() > 0 or is_tracing():  # a mode or a trace wants to see what runs
            return dispatched(*inputs)
        return take(call(*[None if x is None else give(x) for x in inputs[:tensors]], *inputs[tensors:]))

    return forward

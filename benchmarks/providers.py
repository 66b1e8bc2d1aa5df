"""Our own backends as providers, and what all peers share."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch._functorch import config as torch_functions

import merc_kernels
from benchmarks.cell import Provider

Loss = Callable[..., Any]
DEVICES = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}  # of the backends that take tensors on one alone


def ours(loss: Loss, device: str, formulas: tuple[str, ...] = ("",)) -> list[Provider]:
    """``merc``, which leaves the choice to the package, and ``merc:NAME`` of each backend.

    Nothing is run: a kernel that breaks what the process can do on a GPU is to meet the process that weighs first.

    Args:
        loss: the subject's inputs, the formula, and ``backend`` by keyword.
        device: ``cpu`` or ``cuda``.
        formulas: those that the operator computes.
    """
    providers = [Provider("merc", functools.partial(loss, backend=None), formulas=formulas)]
    for name, state in merc_kernels.backends().items():
        only = DEVICES.get(name, device)
        reason = state.removeprefix("off: ") if state != "on" else f"it takes tensors on {only} only"
        if state != "on" or only != device:
            providers.append(absent(f"merc:{name}", reason))
            continue
        plain = name == "reference"
        call = functools.partial(loss, backend=name)
        providers.append(Provider(f"merc:{name}", call, formulas=formulas, fused=not plain, square=plain))
    return providers


def absent(name: str, reason: str) -> Provider:
    """A peer that is named, and not there."""
    return Provider(name, absent=" ".join(reason.split())[:300])


def optional(name: str, module: str, make: Callable[[Any], Loss], **options: Any) -> Provider:
    """A peer from a package that need not be installed; ``make`` turns the imported module into the loss."""
    try:
        return Provider(name, make(importlib.import_module(module)), **options)
    except Exception as error:  # an import may fail in any way; the reason is the result
        return absent(name, f"{type(error).__name__}: {error}")


def compiled(loss: Loss) -> Loss:
    """`torch.compile` of a loss, for the sizes it sees; compiled anew for each cell.

    It keeps its buffers, so that its backward pass can be timed alone.
    """
    seen: dict[Any, Loss] = {}
    torch_functions.donated_buffer = False

    def call(*inputs: Any) -> Any:
        key = tuple((x.shape, x.dtype, x.device) if isinstance(x, torch.Tensor) else x for x in inputs)
        if key not in seen:
            torch._dynamo.reset()
            seen.clear()
            seen[key] = torch.compile(loss, dynamic=False)
        return seen[key](*inputs)

    return call

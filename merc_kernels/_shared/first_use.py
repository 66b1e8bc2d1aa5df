"""The first use of a kernel in a process: a small problem, whose values are compared with the reference's.

A wrong kernel, one that does not compile and one that cannot be launched then cost speed and a warning, not a training
run. Nothing is tried while a graph is captured or a program traced: there what an earlier call found holds.
"""

import threading
import warnings
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 257  # more than a tile, and not a multiple of one
# Largest relative error of a loss and of a gradient, with room for tf32 in float32; a wrong kernel is off by far more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}

_SCALE = 4096.0  # the gradient of the loss: as under loss scaling, so that float16 does not underflow

Loss = Callable[..., Tensor]


class Problem(NamedTuple):
    """A small problem of a loss.

    Attributes:
        inputs: the loss's tensors by name; floating ones that require a gradient get theirs compared.
        options: the loss's other arguments.
    """

    inputs: dict[str, Tensor]
    options: dict[str, object]


_outcomes: dict[Hashable, str | None] = {}  # None: the kernels may be used
_lock = threading.Lock()


def passed(backend: str, operator: str, loss: Loss, problem: Callable[[], Problem], *key: Hashable) -> bool:
    """Whether ``backend`` may be used; the first time, a small problem of this ``key`` tells.

    Warns once where it may not.
    """
    whole = (backend, operator, *key)
    if whole not in _outcomes:
        with _lock:
            if whole not in _outcomes:
                trouble = trouble_of(backend, loss, problem)
                if trouble is not None:
                    warnings.warn(
                        f"merc_kernels: plain PyTorch takes the place of backend {backend!r} in {operator} "
                        f"({', '.join(map(str, key))}): {trouble}; merc info --check tries every kernel",
                        stacklevel=8,
                    )
                _outcomes[whole] = trouble
    return _outcomes[whole] is None


def trouble_of(backend: str, loss: Loss, problem: Callable[[], Problem]) -> str | None:
    """What is wrong with a backend's values on a problem; None where nothing is."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            inputs, options = problem()
            dtype = next(iter(inputs.values())).dtype
            device = next(iter(inputs.values())).device.type
            with torch.autocast(device, enabled=False):
                actual = _results(loss, inputs, options, backend)
                exact = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
                truth = _results(loss, exact, options, "reference")
        worst = max(_error(one, other) for one, other in zip(actual, truth, strict=True))
    except Exception as error:  # whatever a compiler, a driver or a launch may raise
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    if worst <= TOLERANCE[dtype]:
        return None
    return f"its values on a small problem are off by {worst:.1e}, relative; {TOLERANCE[dtype]:.0e} is allowed"


def _results(loss: Loss, inputs: dict[str, Tensor], options: dict[str, object], backend: str) -> list[Tensor]:
    """The loss and the gradients."""
    leaves = {n: x.detach().requires_grad_() if x.is_floating_point() else x for n, x in inputs.items()}
    value = loss(**leaves, **options, backend=backend)
    wanted = [x for x in leaves.values() if x.requires_grad]
    gradients = torch.autograd.grad(value, wanted, value.new_tensor(_SCALE), materialize_grads=True)
    return [value.detach(), *gradients]


def _error(actual: Tensor, truth: Tensor) -> float:
    """Relative, in the Euclidean norm; infinite where either holds what is not finite."""
    difference = (actual.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30)
    return float(difference.nan_to_num(nan=torch.inf))

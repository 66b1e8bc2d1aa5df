"""Which backends there are, which of them are on, and the choice among them."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from merc_kernels._shared import torch_private

_C: Any = None
try:
    _C = importlib.import_module("merc_kernels._C")  # registers the compiled operators
except ImportError as error:
    _no_extension = str(error)

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # asked here: Dynamo cannot trace the question
_ON = "on"
_MATRIX = 1 << 26  # elements of the matrix of similarities from which on memory matters more than launches
_forced: ContextVar[str | None] = ContextVar("merc_kernels_backend", default=None)
_forced_in_traces: str | None = None  # Dynamo can guard a global, but cannot trace a ContextVar


def build() -> dict[str, Any] | None:
    """How the extension was compiled: compiler, CUDA, torch; None where there is none."""
    return None if _C is None else dict(_C.build)


def extension() -> Any:
    """The compiled module."""
    return _C


def backends() -> dict[str, str]:
    """State of each backend: ``"on"``, or ``"off: "`` and the reason.

    Returns: a new dict with the keys ``cpu``, ``cuda``, ``triton``, ``torch`` and ``reference``.
    """
    return {name: _state(name) for name in _BACKENDS}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Have every call with ``backend=None`` inside the block use the backend ``name``.

    A ``backend=`` argument wins over the block. Blocks nest, and hold for the current thread or asyncio task; what
    ``torch.compile`` traces follows the block entered last, in whichever thread, and is traced anew when it changes.

    Args:
        name: a key of `backends`.

    Raises:
        ValueError: no such backend, or it is off (the message gives the reason).
    """
    global _forced_in_traces
    token = _forced.set(_usable("name", name))
    before, _forced_in_traces = _forced_in_traces, name
    try:
        yield
    finally:
        _forced_in_traces = before
        _forced.reset(token)


def check(backend: str | None) -> None:
    """``backend`` is None or a backend that is on."""
    if backend is not None:
        _usable("backend", backend)


def choose(
    backend: str | None, operator: str, device: str, pairs: int = 0, offered: Sequence[str] | None = None
) -> str:
    """Name of the backend that a call runs on.

    Args:
        backend: the call's argument; None leaves the choice to `use_backend`, and then to us.
        operator: for the message.
        device: the type of the tensors' device. On a GPU a fused backend runs only where it is named: none has been
            measured on one yet.
        pairs: how many elements the matrix has that the plain form would hold.
        offered: the backends that the operator has; None: every one.
    """
    tracing = torch.compiler.is_compiling()
    forced = backend or (_forced_in_traces if tracing else _forced.get())
    transformed = not tracing and torch_private.transformed()
    if forced is not None:
        name = _usable("backend", forced)
        if offered is not None and name not in offered:
            raise ValueError(f"backend: {name!r} has no {operator}; it has {', '.join(offered)}")
        if name != "reference" and transformed:
            raise ValueError(
                f"backend: {name!r} does not run under torch.func or forward-mode autograd; 'reference' does"
            )
        if not _BACKENDS[name].takes(device):
            raise ValueError(f"backend: {name!r} does not take tensors on {device}")
        return name
    if device == "cpu" and (offered is None or "cpu" in offered) and _state("cpu") == _ON and not transformed:
        return "cpu"
    return "torch" if pairs >= _MATRIX and not transformed else "reference"


def device_of(tensor: object) -> str:
    """The type of a tensor's device; what is no tensor is refused later."""
    return tensor.device.type if isinstance(tensor, Tensor) else "cpu"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _compiled_state() -> str:
    if _C is None:
        advice = "install with a C++ compiler and pip's --no-build-isolation"
        return f"off: the compiled extension is missing ({_no_extension}); {advice}"
    return _ON


def _cuda_state() -> str:
    if (state := _compiled_state()) != _ON:
        return state
    if _C.build["cuda"] is None:
        return "off: the extension was compiled without CUDA (it wants nvcc and a CUDA build of torch)"
    return _ON if torch.cuda.is_available() else "off: no CUDA device is available"


def _triton_state() -> str:
    if not _HAS_TRITON:
        return "off: triton is not installed"
    on = torch.cuda.is_available() or _interpreted()
    return _ON if on else "off: no CUDA device is available (TRITON_INTERPRET=1 takes CPU tensors)"


class _Backend(NamedTuple):
    state: Callable[[], str]  # "on", or "off: " and the reason
    takes: Callable[[str], bool]  # tensors on that type of device


_BACKENDS = {
    "cpu": _Backend(_compiled_state, lambda device: device == "cpu"),
    "cuda": _Backend(_cuda_state, lambda device: device == "cuda"),
    "triton": _Backend(_triton_state, lambda device: device == "cuda" or (device == "cpu" and _interpreted())),
    "torch": _Backend(lambda: _ON, lambda _: True),
    "reference": _Backend(lambda: _ON, lambda _: True),
}


def _state(name: str) -> str:
    return _BACKENDS[name].state()


def _usable(argument: str, name: str) -> str:
    if not isinstance(name, str) or name not in _BACKENDS:
        known = ", ".join(repr(known) for known in _BACKENDS)
        raise ValueError(f"{argument}: expected one of {known}, got {name!r}")
    if (state := _state(name)) != _ON:
        raise ValueError(f"{argument}: expected a backend that is on, got {name!r}, which is {state}")
    return name

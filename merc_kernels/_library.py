"""Which backends there are, which of them are on, and the choice among them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_ON = "on"
_STATE = {  # the fastest first
    "cpu": "off: this release has no compiled CPU kernels",
    "cuda": "off: this release has no compiled CUDA kernels",
    "triton": "off: this release has no Triton kernels",
    "torch": "off: this release has no linear-memory algorithm in PyTorch",
    "reference": _ON,
}
_forced: ContextVar[str | None] = ContextVar("merc_kernels_backend", default=None)
_forced_in_traces: str | None = None  # Dynamo can guard a global, but cannot trace a ContextVar


def backends() -> dict[str, str]:
    """State of each backend: ``"on"``, or ``"off: "`` and the reason.

    Returns: a new dict with the keys ``cpu``, ``cuda``, ``triton``, ``torch`` and ``reference``.
    """
    return dict(_STATE)


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


def choose(backend: str | None) -> str:
    """Name of the backend that a call with the argument ``backend`` runs on."""
    if backend is not None:
        return _usable("backend", backend)
    forced = _forced_in_traces if torch.compiler.is_compiling() else _forced.get()
    return forced or next(name for name, state in _STATE.items() if state == _ON)


def _usable(argument: str, name: str) -> str:
    if not isinstance(name, str) or name not in _STATE:
        known = ", ".join(repr(known) for known in _STATE)
        raise ValueError(f"{argument}: expected one of {known}, got {name!r}")
    if _STATE[name] != _ON:
        raise ValueError(f"{argument}: expected a backend that is on, got {name!r}, which is {_STATE[name]}")
    return name

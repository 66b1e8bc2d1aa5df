"""Which backends there are, which of them are on, and the choice among them."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from merc_kernels._shared import checks, default, first_use, torch_private

_C: Any = None
_no_extension: ImportError | None = None
try:
    _C = importlib.import_module("merc_kernels._C")  # registers the compiled operators
except ImportError as error:
    _no_extension = error

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # asked here: Dynamo cannot trace the question
_ON = "on"
_VARIABLE = "MERC_BACKEND"
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


class Call(NamedTuple):
    """What the choice on a GPU looks at.

    Attributes:
        tensor: the first, for dtype and device.
        rows: of a group, with prototypes and refs; None in a trace.
        pairs: about how many elements the matrix has that the plain form of the contrastive loss would hold; of the
            divergence the student's logits, 0 in a trace.
        loss: the public function, which a first use tries.
        problem: the small problem that it is tried on.
        path: what distinguishes the call's kernels from others of the operator.
    """

    tensor: Tensor
    rows: int | None
    pairs: int
    loss: Callable[..., Tensor]
    problem: Callable[[], first_use.Problem]
    path: tuple[Hashable, ...]


def choose(
    backend: str | None,
    operator: str,
    tensor: object,
    call: Callable[[], Call] | None,
    offered: Sequence[str] | None = None,
) -> str:
    """Name of the backend that a call runs on.

    Args:
        backend: the call's argument; None leaves the choice to `use_backend`, then to MERC_BACKEND, and then to us.
        operator: ``focal_contrastive`` or ``kd_divergence``.
        tensor: the first of the call, for its device; what is no tensor is refused later.
        call: gives what the rule looks at beside the device; None: no rule, the first of ``offered`` is taken.
        offered: the backends that may be named; None: every one.
    """
    device = tensor.device.type if isinstance(tensor, Tensor) and not tensor.is_cpu else "cpu"  # the quicker question
    tracing = torch.compiler.is_compiling()
    forced = backend or (_forced_in_traces if tracing else _forced.get())
    transformed = not tracing and torch_private.transformed()
    if forced is not None:
        return _named("backend", forced, operator, device, offered, transformed)
    if transformed:
        return "reference"
    forced = os.environ.get(_VARIABLE) if tracing else _of_environment()
    if forced:
        return _named(_VARIABLE, forced, operator, device, offered, transformed)
    if call is None:
        assert offered is not None
        return offered[0]
    if device == "cpu" and _C is not None:
        return "cpu"
    return _unnamed(operator, device, call(), tracing)


def _named(
    argument: str, name: str, operator: str, device: str, offered: Sequence[str] | None, transformed: bool
) -> str:
    """A backend that was asked for, if it can be had."""
    name = _usable(argument, name)
    if offered is not None and name not in offered:
        checks.fail(argument, f"{' or '.join(map(repr, offered))} for {operator}", name)
    if name != "reference" and transformed:
        raise ValueError(
            f"{argument}: {name!r} does not run under torch.func or forward-mode autograd; 'reference' does"
        )
    if not _BACKENDS[name].takes(device):
        raise ValueError(f"{argument}: {name!r} does not take tensors on {device}")
    return name


def _unnamed(operator: str, device: str, call: Call, tracing: bool) -> str:
    """By the rule; on a GPU after a check of values at the first use."""
    capability = _capability(call.tensor.device.index) if device == "cuda" else None
    name = default.choose(operator, device, call.tensor.dtype, call.rows, call.pairs, capability, built()).backend
    if name not in ("cuda", "triton") or tracing or _capturing():
        return name
    key = (str(call.tensor.dtype).removeprefix("torch."), *call.path, capability)
    if first_use.passed(name, operator, call.loss, call.problem, *key):
        return name
    return default.plain(operator, call.pairs, "its kernels failed").backend


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _capability(index: int | None) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)  # which Dynamo takes for a constant
    return properties.major, properties.minor


@functools.cache
def _of_environment() -> str | None:
    """MERC_BACKEND, read once: small batches feel every microsecond."""
    return os.environ.get(_VARIABLE)


def built() -> default.Built:
    """What this install can run, where the device is there."""
    return default.Built(_C is not None, None if _C is None else _C.build["cuda_archs"], _HAS_TRITON)


def default_backend(
    operator: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    rows: int,
    width: int,
    capability: tuple[int, int] | None = None,
) -> default.Default:
    """What a call without ``backend=`` takes, and why, for any device, present or not, with this install.

    Args:
        operator: ``"focal_contrastive"`` or ``"kd_divergence"``.
        device: such as ``"cpu"`` or ``"cuda"``.
        dtype: of the embeddings or logits.
        rows: N; with refs or prototypes, those too.
        width: D, or the number of classes.
        capability: of the GPU, such as ``(9, 0)``; None takes that of the GPU that is here.

    Returns:
        ``(backend, reason)``. On a GPU the backend's kernels are compared with the reference at their first use in a
        process; where they fail, a warning says so and plain PyTorch takes their place.

    Raises:
        ValueError: no such operator or dtype, sizes below 0, or no ``capability`` and no GPU to ask.
    """
    checks.choice("operator", operator, default.OPERATORS)
    if dtype not in checks.DTYPES[checks.FLOAT]:
        checks.fail("dtype", checks.FLOAT, dtype)
    for name, size in (("rows", rows), ("width", width)):
        checks.integer(name, size)
        checks.number(name, size)
    place = torch.device(device)
    if place.type == "cuda":
        if capability is None:
            if not torch.cuda.is_available():
                checks.fail("capability", "such as (9, 0), as no CUDA device is here to ask", capability)
            capability = _capability(place.index)
        capability = (int(capability[0]), int(capability[1]))
    else:
        capability = None
    pairs = rows * (width if operator == "kd_divergence" else rows)
    return default.choose(operator, place.type, dtype, rows, pairs, capability, built())


def takes(name: str, device: str) -> bool:
    """Whether a backend takes tensors on this type of device."""
    return _BACKENDS[name].takes(device)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _compiled_state() -> str:
    if _C is not None:
        return _ON
    advice = "with a C++ compiler and pip's --no-build-isolation"
    if isinstance(_no_extension, ModuleNotFoundError):
        return f"off: the compiled extension is missing ({_no_extension}); install {advice}"
    beside = f"it does not load beside PyTorch {torch.__version__}, and was built beside another"
    return f"off: the compiled extension is here, but {beside} ({_no_extension}); install again {advice}"


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

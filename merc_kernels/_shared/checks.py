"""Argument checks: a ValueError names the argument, what was expected and what came.

Options, shapes, dtypes and devices are checked always. Values inside tensors are checked where reading them
costs nothing: on the CPU, and elsewhere only under ``MERC_CHECK=1``; never while a program is being traced.
"""

import math
import os
import reprlib
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor

from merc_kernels._shared import torch_private

FLOAT = "float64, float32, bfloat16 or float16"
INT64 = "int64"
BOOL = "bool"
DTYPES = {
    FLOAT: (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    INT64: (torch.int64,),
    BOOL: (torch.bool,),
}
SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-9, 1e9
_TEMPERATURE = f"a finite number > 0, from {SMALLEST_TEMPERATURE:g} to {LARGEST_TEMPERATURE:g}"
_PLAIN = (Tensor, torch.nn.Parameter)
Shape = tuple[int | str, ...]  # a letter stands for any size


def fail(name: str, expected: str, actual: object) -> NoReturn:
    """Raise the ValueError for argument ``name``."""
    if isinstance(actual, Tensor):
        dtype = str(actual.dtype).removeprefix("torch.")
        actual = f"{dtype} tensor of shape {_shape_text(tuple(actual.shape))} on {actual.device}"
    else:
        actual = reprlib.repr(actual)  # of a long list the first few
    raise ValueError(f"{name}: expected {expected}, got {actual}")


def _shape_text(shape: Shape) -> str:
    return f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(map(str, shape))})"


def flag(name: str, value: object) -> None:
    """``value`` is a bool."""
    if not isinstance(value, bool):
        fail(name, "True or False", value)


def choice(name: str, value: object, options: Sequence[str]) -> None:
    """``value`` is one of the strings ``options``."""
    if not isinstance(value, str) or value not in options:
        fail(name, " or ".join(repr(option) for option in options), value)


def number(name: str, value: Any, *, above: float | None = None, below: float = math.inf) -> None:
    """``value`` is a finite number in (above, below), or in [0, below) where ``above`` is None."""
    if _real(value) and (value >= 0 if above is None else value > above) and value < below:  # a NaN compares False
        return
    expected = "a finite number >= 0" if above is None else f"a finite number > {above:g}"
    if below != math.inf:
        expected += f" and < {below:g}"
    fail(name, expected, value)


def _real(value: object) -> bool:
    return isinstance(value, (int, float, Real)) and not isinstance(value, bool)  # numpy's numbers too


def temperature(name: str, value: Any) -> None:
    """``value`` is a number by which, and by whose square, float32 can multiply and divide."""
    if not (_real(value) and SMALLEST_TEMPERATURE <= value <= LARGEST_TEMPERATURE):  # a NaN compares False
        fail(name, _TEMPERATURE, value)


def temperatures(name: str, value: Tensor, used: Tensor | None = None) -> None:
    """The same of every element of ``value``, which must be readable, or of those ``used`` (a bool of its shape)."""
    good = (value >= SMALLEST_TEMPERATURE) & (value <= LARGEST_TEMPERATURE)
    elements(name, _TEMPERATURE, value, good if used is None else good | ~used)


def weights(name: str, value: Tensor) -> None:
    """No element is negative or NaN; that of a class which does not occur may be infinite."""
    if readable(value):
        elements(name, "numbers >= 0", value, value >= 0)


def integer(name: str, value: object) -> None:
    """``value`` is a Python int."""
    if isinstance(value, bool) or not isinstance(value, int):
        fail(name, "an int", value)


def tensor(name: str, value: object, dtypes: str, device: torch.device | None, *shapes: Shape) -> None:
    """``value`` is a tensor of one of ``dtypes`` and one of ``shapes``, on ``device`` where that is given."""
    if isinstance(value, Tensor) and value.dtype in DTYPES[dtypes] and (device is None or value.device == device):
        for shape in shapes:
            if _fits(value.shape, shape):
                return
    place = "" if device is None else f" on {device}"
    wanted = " or ".join(_shape_text(shape) for shape in shapes)
    fail(name, f"{dtypes} tensor of shape {wanted}{place}", value)


def _fits(size: torch.Size, shape: Shape) -> bool:
    if len(size) != len(shape):
        return False
    for actual, wanted in zip(size, shape, strict=True):  # a plain loop: small batches feel every microsecond
        if not isinstance(wanted, str) and actual != wanted:
            return False
    return True


def untyped(*values: Any) -> tuple[Any, ...]:
    """The values; tensors of a subclass that only names them, as fastai's, as the plain tensors that they are."""
    for value in values:  # a plain loop: small batches feel every microsecond
        if value is not None and type(value) not in _PLAIN:
            return tuple([_untyped(value) for value in values])
    return values


def _untyped(value: Any) -> Any:
    if type(value) in _PLAIN or not isinstance(value, Tensor):
        return value
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # it decides what operators do
        return value
    if torch.compiler.is_compiling():  # torch.compile knows no way to a plain one
        return value
    return Tensor.as_subclass(value, Tensor)


def eager(*values: Tensor | None) -> bool:
    """Whether all that are there are plain tensors with elements: nothing is traced, transformed or faked."""
    if torch.compiler.is_compiling() or torch_private.tracing_state() is not None:
        return False
    for value in values:
        if value is not None and (type(value) not in _PLAIN or torch_private.is_wrapped(value)):
            return False
    return True


def readable(value: Tensor) -> bool:
    """Whether the elements of ``value`` may be looked at."""
    return eager(value) and (value.device.type == "cpu" or os.environ.get("MERC_CHECK") == "1")


def elements(name: str, expected: str, value: Tensor, good: Tensor) -> None:
    """Every element of ``value``, which must be readable, is ``good`` (a bool tensor of its shape)."""
    if not bool(good.all()):
        fail(name, expected, value[~good].flatten()[0].item())


def labels_in_range(name: str, labels: Tensor, classes: int, ignore_index: int) -> None:
    """Labels lie in [0, classes) or equal ``ignore_index``."""
    if readable(labels):
        good = (labels == ignore_index) | ((labels >= 0) & (labels < classes))
        elements(name, f"labels in [0, {classes}) or ignore_index={ignore_index}", labels, good)


def shared(shape: Shape, groups: tuple[int, ...]) -> tuple[Shape, ...]:
    """A tensor that the groups share, or that has its own part for each."""
    return (shape, groups + shape) if groups else (shape,)

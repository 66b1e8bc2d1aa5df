"""What a caller gives as an array, as the array that a corpus holds; what cannot be one is named."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.errors import UserError


def as_integers(name: str, values: Any) -> NDArray[np.int64]:
    """Whole numbers (n,) of any type as int64.

    Raises:
        UserError: something else, naming the array and, where one value is to blame, that value.
    """
    array = _array(name, values)
    if not array.size:
        array = array.astype(np.int64)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name}: expected integers, got {_kind(array)}")
    _one_axis(name, array)
    with np.errstate(invalid="ignore"):  # a value out of range becomes another, and is seen by that
        integers = array.astype(np.int64)
        wrong = np.flatnonzero((integers != array) | ((integers < 0) != (array < 0)))
    if len(wrong):
        raise UserError(f"{name}: expected integers, got {array[wrong[0]]} at {wrong[0]}")
    return integers


def as_strings(name: str, values: Any) -> NDArray[np.str_]:
    """Strings (n,) as a numpy array of them; a UserError naming the array where they are none."""
    array = _array(name, values)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat):
        array = array.astype(np.str_)
    if not array.size:
        array = array.astype(np.str_)
    if array.dtype.kind not in "UT":
        raise UserError(f"{name}: expected strings, got {_kind(array)}")
    _one_axis(name, array)
    return array.astype(np.str_)


def as_numbers(name: str, values: Any) -> NDArray[Any]:
    """Numbers of any type, or one array a row, as an array of numbers; None and a row that is None become NaN."""
    array = _array(name, values)
    if array.dtype.kind == "O":
        array = _from_objects(name, array)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name}: expected numbers, got {_kind(array)}")
    return array


def worst_column(rows: NDArray[Any]) -> str:
    """In brackets, the column that most often makes a row missing that holds other values; or nothing."""
    nan = np.isnan(rows)
    counts = nan[nan.any(axis=1) & ~nan.all(axis=1)].sum(axis=0)
    if not counts.any():
        return ""
    return f" (column {counts.argmax()} is NaN in {counts.max()} rows that hold other values)"


def _array(name: str, values: Any) -> NDArray[Any]:
    if np.ma.is_masked(values):  # what lies under a mask would count as known
        raise UserError(f"{name}: has masked values; fill them first (features with NaN: values.filled(np.nan))")
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths, or None among them
        array = np.empty(len(values), object)
        array[:] = list(values)
    except Exception as error:  # a tensor on another device, for one
        raise UserError(f"{name}: expected an array, got {type(values).__name__} ({error})") from None
    return _simplest(array) if array.dtype.kind == "O" else array


def _simplest(array: NDArray[Any]) -> NDArray[Any]:
    """An array of objects, as pandas gives, as one of numbers or strings where they are all of one kind."""
    try:
        simpler = np.array(array.tolist())
    except (ValueError, TypeError, OverflowError):
        return array
    mixed = simpler.dtype.kind in "US" and not all(isinstance(value, str) for value in array.flat)
    return array if mixed else simpler


def _from_objects(name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    if not array.ndim:
        raise UserError(f"{name}: expected numbers, got {_kind(array)}")
    rows = [None if _is_none(row) else _row(name, number, row) for number, row in enumerate(array)]
    shapes = {row.shape for row in rows if row is not None}
    if len(shapes) > 1:
        raise UserError(f"{name}: rows of different shapes: {', '.join(map(str, sorted(shapes)))}")
    gap = np.full(shapes.pop() if shapes else (1,), np.nan)
    return np.array([gap if row is None else row for row in rows])


def _row(name: str, number: int, row: Any) -> NDArray[np.float64]:
    try:
        values = np.asarray(row)
        if values.dtype.kind == "O" and all(value is None or isinstance(value, Real) for value in values.flat):
            return values.astype(np.float64)
        if values.dtype.kind in "biuf":
            return values.astype(np.float64)
    except OverflowError:
        raise UserError(f"{name}: row {number} holds a number that is too large") from None
    except ValueError:
        raise UserError(f"{name}: row {number} is no list of numbers") from None
    raise UserError(f"{name}: expected numbers, got {_kind(values)} in row {number}")


def _is_none(row: object) -> bool:
    """Whether a row is missing as a whole: None, or pandas' NaN in place of an array."""
    return row is None or (isinstance(row, float) and np.isnan(row))


def _kind(array: NDArray[Any]) -> str:
    if array.dtype.kind != "O":
        return str(array.dtype)
    kinds = sorted({type(value).__name__ for value in array.flat})
    return f"objects ({', '.join(kinds[:3])})"


def _one_axis(name: str, array: NDArray[Any]) -> None:
    if array.ndim != 1:
        raise UserError(f"{name}: expected one axis, got shape {array.shape}")

"""Reading a pickle without trusting it.

A pickle names the callables that rebuild its objects. Here each name leads to a stand-in of our own, which
checks its arguments and builds a numpy array, a number or a plain container; any other name is refused.
numpy's ``dtype`` and ``ndarray`` see no state that was not checked, because a forged one can corrupt memory.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.data.foreign import what_it_is
from merc_model.errors import UserError

_TYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|[US][1-9]\d{0,6}")
_AS_TEXT = "; all its line ends are CR LF, so it was transferred as text: fetch it anew, as binary"
_ADVICE = {
    "joblib": "load it with joblib, and write it anew with pickle",
    "pandas": "load it with pandas, turn the tables into numpy arrays (table.to_numpy()) and pickle those",
    "scipy": "load it with scipy, turn the matrices into numpy arrays (matrix.toarray()) and pickle those",
}
_TENSORS = "; load it with torch, turn the tensors into numpy arrays (tensor.numpy()) and pickle those"


def load_pickle(path: str | Path, *, warn: Callable[[str], None] = lambda line: None) -> Any:
    """The plain containers, numbers, strings and arrays in a pickle of any protocol, Python 2's included.

    A pickle that was transferred as text, so that each of its line feeds became CR LF, is turned back, with a warning.

    Raises:
        UserError: a file that is missing or broken, or that asks for anything else; nothing of it has run.
    """
    path = Path(path)
    converted = False
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:2] == b"PK":
                raise UserError(f"{path}: {_archive(content)}")
            foreign = what_it_is(content[:300])
            if foreign is not None:
                raise UserError(f"{path}: {foreign}")
            converted = _carriage_returns(content)
            if converted:
                with contextlib.suppress(Exception):  # then it only looked so, and is read as it is
                    loaded = _Unpickler(io.BytesIO(content[:].replace(b"\r\n", b"\n")), encoding="latin1").load()
                    warn(f"{path}: its line ends had become CR LF, as git's autocrlf does, and were turned back")
                    return loaded
            # Read from a map, a length that the file does not have ends in an error, not in an allocation.
            return _Unpickler(content, encoding="latin1").load()
    except UserError:
        raise
    except _RefusedError as refusal:
        if converted:
            raise UserError(f"{path}: not a readable pickle{_AS_TEXT}") from None
        raise UserError(f"{path}: refused, and nothing of it was run: {refusal}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give the pickle file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory, or is damaged") from None
    except Exception:  # a damaged pickle can raise nearly anything
        empty = path.is_file() and path.stat().st_size == 0
        what = f"not a readable pickle, or cut short{_AS_TEXT if converted else ''}"
        raise UserError(f"{path}: {'is empty' if empty else what}") from None


def _archive(content: mmap.mmap) -> str:
    """What a zip archive is, by the names in it."""
    if content.find(b".npy", 0, 300) >= 0:
        return "an .npz archive, not a pickle; if it is a corpus, merc train --data reads it"
    if content.find(b"data.pkl", 0, 300) >= 0:
        return f"a zip archive, as torch.save writes, not a plain pickle{_TENSORS}"
    return "a zip archive, not a plain pickle; unpack it first"


def _carriage_returns(content: mmap.mmap) -> bool:
    """Whether every line feed of a file follows a carriage return, and there is one."""
    return content.find(b"\r\n") >= 0 and re.search(rb"(?<!\r)\n", content) is None


class _RefusedError(Exception):
    """The pickle asks for something that is not admitted; the message says for what."""


class _Unpickler(pickle.Unpickler):
    """Admits the names in ``_ADMITTED``."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global."""
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        wanted = f"{module}.{name}"[:80]
        package = module.partition(".")[0]
        if package == "torch":
            raise _RefusedError(f"it holds torch objects ({wanted!r}){_TENSORS}")
        if package in _ADVICE:
            raise _RefusedError(f"it holds {package} objects ({wanted!r}); {_ADVICE[package]}")
        raise _RefusedError(f"it asks for {wanted!r}; only numpy arrays and plain containers are read")

    def persistent_load(self, pid: object) -> Any:
        """No pickle of features refers to objects outside itself."""
        raise _RefusedError(f"it refers to objects outside the file, as torch.save does{_TENSORS}")


class _Admitted:
    """Stands for a callable: calls ``make`` with the file's arguments, and cannot be changed by the file."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("it tries to change a function")


class _DType:
    """Stands for a ``numpy.dtype``, which pickles as a code and then a state with the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not _TYPE_CODE.fullmatch(code):
            wanted = str(code)[:20]
            raise _RefusedError(f"it has an array of type {wanted!r}; only numbers and text are read, no objects")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, order, *structure = state[:5]
        if order not in ("<", ">", "|", "=") or structure != [None, None, None] or len(state) > 8:
            raise _RefusedError("it has an array of records; only numbers and text are read")
        self.order = order

    def resolve(self) -> np.dtype[Any]:
        """The dtype itself."""
        return np.dtype(self.order + self.code)


class _Array(np.ndarray[Any, Any]):
    """Stands for an array until its state comes: version, shape, dtype, column order, data."""

    __slots__ = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, columns_first, data = state[-4:]
        raw, resolved, shape = _checked(data, dtype, shape)
        whole: Any = (1, shape, resolved, bool(columns_first), raw)
        super().__setstate__(whole)


def _checked(data: Any, dtype: Any, shape: Any) -> tuple[bytes, np.dtype[Any], tuple[int, ...]]:
    """Array data, dtype and shape that belong together, or an error."""
    if not isinstance(dtype, _DType):
        raise _RefusedError("it has an array without a type")
    if isinstance(data, str):
        data = data.encode("latin1")  # Python 2 wrote strings
    raw = data if isinstance(data, bytes) else bytes(memoryview(data))
    resolved, shape = dtype.resolve(), tuple(int(size) for size in shape)
    if min(shape, default=0) < 0 or math.prod(shape) * resolved.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes of data for an array {shape} of {resolved}")
    return raw, resolved, shape


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _NDARRAY:
        raise _RefusedError("it has an array of an unknown kind")
    return np.empty(0, np.uint8).view(_Array)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    raw, resolved, shape = _checked(data, dtype, shape)
    return np.frombuffer(raw, resolved).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    raw, resolved, _ = _checked(data, dtype, ())
    return np.frombuffer(raw, resolved)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"it encodes text as {str(encoding)[:20]!r}; only latin1 carries array data")
    return text.encode("latin1")


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """An OrderedDict, from nothing or its pairs, as a dict: dicts are ordered."""
    (pairs,) = arguments or ([],)
    if not isinstance(pairs, list):
        raise _RefusedError("it has a dictionary of an unknown kind")
    return dict(pairs)


def _default_mapping(*factory: Any) -> dict[Any, Any]:
    """A defaultdict without its factory."""
    return {}


def _collection(kind: type[Any]) -> Callable[[Any], Any]:
    def make(members: Any = ()) -> Any:
        if not isinstance(members, list | tuple):
            raise _RefusedError(f"it has a {kind.__name__} of an unknown kind")
        return kind(members)

    return make


def _nothing_to_call(*arguments: Any) -> Any:
    raise _RefusedError("it calls a type")


_NDARRAY = _Admitted(_nothing_to_call)
_ADMITTED: dict[tuple[str, str], _Admitted] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Admitted(_DType),
    ("_codecs", "encode"): _Admitted(_encode),
    ("collections", "OrderedDict"): _Admitted(_mapping),
    ("collections", "defaultdict"): _Admitted(_default_mapping),
    **{
        (f"numpy.{core}.{module}", name): _Admitted(make)
        for core in ("core", "_core")  # numpy 1 and 2
        for module, name, make in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    **{
        (builtins, kind.__name__): _Admitted(_collection(kind))
        for builtins in ("builtins", "__builtin__")  # Python 3 and 2
        for kind in (set, frozenset, list, tuple)
    },
    **{
        (builtins, name): _Admitted(make)
        for builtins in ("builtins", "__builtin__")
        for name, make in (
            ("bytes", lambda: b""),  # how protocol 2 writes the data of an empty array
            ("dict", _nothing_to_call),  # the factories of a defaultdict
            ("int", _nothing_to_call),
            ("float", _nothing_to_call),
        )
    },
}

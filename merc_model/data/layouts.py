"""The layouts of the community's feature pickles: which field stands where, and how a layout is recognised.

A field is a dictionary from dialogue to one row an utterance; ``train``, ``test``, ``valid`` list dialogues.
A file is a tuple of fields, or one field alone. ``_`` is a field that is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.errors import UserError

ROBERTA = ("roberta1", "roberta2", "roberta3", "roberta4")
SPLIT_FIELDS = ("train", "valid", "test")
_UNREAD = ("_", "ids", "sentences", "sentiments")


@dataclass(frozen=True)
class Layout:
    """One way the field writes its features down.

    Attributes:
        about: the files, as their authors call them, and whose they are.
        dataset: ``iemocap`` or ``meld``: the order of the labels, and the counts to expect.
        files: the fields of each file, in order.
        widths: feature field → the widths it is known with.
    """

    about: str
    dataset: str
    files: tuple[tuple[str, ...], ...]
    widths: Mapping[str, tuple[int, ...]]


def _fields(order: str) -> tuple[str, ...]:
    return tuple(order.replace("roberta", " ".join(ROBERTA)).split())


_IEMOCAP_WIDTHS = {"audio": (1582, 100), "visual": (342, 512)}
_MELD_WIDTHS = {"audio": (300,), "visual": (342,)}
_ROBERTA_WIDTHS = dict.fromkeys(ROBERTA, (1024,))
_MULTIEMO_WIDTHS = {"text": (768,), "audio": (512,), "visual": (1000,)}

LAYOUTS: dict[str, Layout] = {
    "iemocap-mmgcn": Layout(
        "IEMOCAP_features.pkl of MMGCN, MM-DFN, COGMEN and CORECT",
        "iemocap",
        (_fields("ids speakers labels text audio visual sentences train test"),),
        {"text": (100,), **_IEMOCAP_WIDTHS},
    ),
    "iemocap-sdt": Layout(
        "iemocap_multimodal_features.pkl of SDT and GraphSmile",
        "iemocap",
        (_fields("ids speakers labels roberta audio visual sentences train test"),),
        {**_ROBERTA_WIDTHS, **_IEMOCAP_WIDTHS},
    ),
    "iemocap-m3net": Layout(
        "IEMOCAP_features.pkl and iemocap_features_roberta.pkl of M3Net",
        "iemocap",
        (
            _fields("ids speakers labels _ audio visual sentences train test"),
            _fields("_ _ roberta _ _ _ valid"),
        ),
        {**_ROBERTA_WIDTHS, **_IEMOCAP_WIDTHS},
    ),
    "iemocap-multiemo": Layout(
        "Speakers.pkl, TextFeatures.pkl, AudioFeatures.pkl and VisualFeatures.pkl of MultiEMO, for IEMOCAP",
        "iemocap",
        (_fields("_ speakers labels _ _ _ _ train test"), ("text",), ("audio",), ("visual",)),
        _MULTIEMO_WIDTHS,
    ),
    "meld-mmgcn": Layout(
        "MELD_features_raw1.pkl of MMGCN and MM-DFN",
        "meld",
        (_fields("ids speakers labels text audio visual sentences train test sentiments"),),
        {"text": (600,), **_MELD_WIDTHS},
    ),
    "meld-sdt": Layout(
        "meld_multimodal_features.pkl of SDT",
        "meld",
        (_fields("ids speakers labels roberta audio visual sentences train test sentiments"),),
        {**_ROBERTA_WIDTHS, **_MELD_WIDTHS},
    ),
    "meld-graphsmile": Layout(
        "meld_multimodal_features.pkl of GraphSmile",
        "meld",
        (_fields("ids speakers labels sentiments roberta audio visual sentences train test _"),),
        {**_ROBERTA_WIDTHS, **_MELD_WIDTHS},
    ),
    "meld-m3net": Layout(
        "MELD_features_raw1.pkl and meld_features_roberta.pkl of M3Net",
        "meld",
        (
            _fields("ids speakers labels _ audio visual sentences train test sentiments"),
            _fields("_ _ _ roberta _ _ _ valid"),
        ),
        {**_ROBERTA_WIDTHS, **_MELD_WIDTHS},
    ),
    "meld-multiemo": Layout(
        "Speakers.pkl, TextFeatures.pkl, AudioFeatures.pkl and VisualFeatures.pkl of MultiEMO, for MELD",
        "meld",
        (_fields("_ speakers labels _ _ _ _ train test _"), ("text",), ("audio",), ("visual",)),
        _MULTIEMO_WIDTHS,
    ),
}


def recognise(
    paths: Sequence[Path], contents: Sequence[Any], layout: str | None, warn: Callable[[str], None]
) -> tuple[str, dict[str, Any]]:
    """The name of the layout that the files have, and their fields.

    Files count by their contents, in any order. A layout is taken unasked where the kinds of its fields and
    the widths of its features are all as known. Named with ``layout``, it need only have the kinds; where
    these leave files exchangeable, they stand in the layout's order.

    Raises:
        UserError: an unknown layout; files that have none, not the one named, or perhaps several.
    """
    where = ", ".join(str(path) for path in paths)
    contents = [_decoded(content) for content in contents]
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"--layout {layout}: unknown; expected one of {', '.join(LAYOUTS)}")
    fitting: list[tuple[list[str], str, dict[str, Any]]] = []
    for name in [layout] if layout else LAYOUTS:
        assignments = [
            (_unknown_widths(LAYOUTS[name], fields), name, fields)
            for order in permutations(contents)
            if len(order) == len(LAYOUTS[name].files)
            and (fields := _assign(LAYOUTS[name], order, named=layout is not None)) is not None
        ]
        fitting.extend(sorted(assignments, key=lambda found: len(found[0]))[:1])
    if not fitting:
        wanted = f"not of the layout {layout}" if layout else f"no known layout ({', '.join(LAYOUTS)})"
        raise UserError(f"{where}: {wanted}: found {'; '.join(map(_describe, contents))}{_needs(contents)}")
    known = [found for found in fitting if not found[0]]
    if layout is None and len(known) != 1:
        unsure = known or fitting
        reason = "" if known else f" but for {', '.join(unsure[0][0])}"
        names = " or ".join(f"--layout {name}" for _, name, _ in unsure)
        raise UserError(f"{where}: could be {names}{reason}; say so if the fields stand in that order")
    unknown, name, fields = (known or fitting)[0]
    for width in unknown:
        warn(f"{name}: {width}")
    return name, fields


def as_array(value: Any) -> NDArray[Any] | None:
    """``value`` as an array of numbers or strings, or None where it is none."""
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return array if array.ndim and array.dtype.kind in "biufUS" else None


def _decoded(content: Any) -> Any:
    """A file with text in place of the bytes that Python 2 wrote: as keys, as ids, as speakers."""
    return type(content)(map(_decoded_field, content)) if isinstance(content, tuple | list) else _decoded_field(content)


def _decoded_field(field: Any) -> Any:
    if isinstance(field, dict):
        return {_text(key): _decoded_members(rows) for key, rows in field.items()}
    return _decoded_members(field)


def _decoded_members(members: Any) -> Any:
    if isinstance(members, np.ndarray) and members.dtype.kind == "S":
        return np.array([_text(member) for member in members.ravel().tolist()], np.str_).reshape(members.shape)
    if isinstance(members, list | tuple | set | frozenset) and any(isinstance(member, bytes) for member in members):
        return type(members)(map(_text, members))
    return members


def _text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin1")


def _assign(layout: Layout, contents: Sequence[Any], *, named: bool = False) -> dict[str, Any] | None:
    """Field → value if each file has the fields that the layout wants there.

    A field that is not read may hold anything where the layout was ``named``; else None and numbers show that
    the file is another one.
    """
    fields: dict[str, Any] = {}
    for names, content in zip(layout.files, contents, strict=True):
        values = (content,) if len(names) == 1 else content
        if not isinstance(values, tuple | list) or len(values) != len(names):
            return None
        for field, value in zip(names, values, strict=True):
            if field in _UNREAD and not (named or field == "_" or isinstance(value, Container)):
                return None
            if field not in _UNREAD and not _fits(field, value):
                return None
        fields.update(zip(names, values, strict=True))
    fields.pop("_", None)
    return fields


def _fits(name: str, value: Any) -> bool:
    """Whether ``value`` is of the kind of the field ``name``, judged by its first dialogue."""
    if name in SPLIT_FIELDS:
        members = value.tolist() if isinstance(value, np.ndarray) else value
        return isinstance(members, list | tuple | set | frozenset) and all(isinstance(m, str | int) for m in members)
    if not isinstance(value, dict):
        return False
    rows = _first(value)
    if rows is None:
        return False
    numbers = rows.dtype.kind in "biuf"
    if name == "labels":
        return rows.ndim == 1 and numbers and bool((rows == np.floor(rows)).all())
    if name == "speakers":
        return rows.ndim == 1 or (rows.ndim == 2 and numbers and bool(np.isin(rows, (0, 1)).all()))
    return rows.ndim == 2 and numbers


def _first(field: dict[Any, Any]) -> NDArray[Any] | None:
    """The rows of the first dialogue that has any."""
    return next((rows for value in field.values() if (rows := as_array(value)) is None or len(rows)), None)


def _unknown_widths(layout: Layout, fields: dict[str, Any]) -> list[str]:
    """A line for each feature whose width is not one it is known with."""
    lines = []
    for name, widths in layout.widths.items():
        rows = _first(fields[name])
        if rows is not None and rows.shape[1] not in widths:
            lines.append(f"{name} has width {rows.shape[1]}, known is {' or '.join(map(str, widths))}")
    return lines


def _needs(contents: Sequence[Any]) -> str:
    """The layouts of which the files may be a part, in words."""
    parts = []
    for layout in LAYOUTS.values():
        singles = [Layout("", "", (names,), {}) for names in layout.files if len(names) > 1]
        if len(layout.files) > len(contents) and all(any(_assign(s, [c]) for s in singles) for c in contents):
            parts.append(layout.about)
    return f"; is a file missing of {', or of '.join(parts)}?" if parts else ""


def _describe(content: Any) -> str:
    """What a pickle holds, in a few words."""
    if isinstance(content, dict):
        rows = _first(content)
        if rows is None or rows.ndim != 2:
            return "a dictionary"
        return f"a dictionary of rows of {rows.shape[1]}"
    if isinstance(content, tuple | list) and len(content) <= 20:
        kinds = ", ".join(type(value).__name__ for value in content)
        return f"{len(content)} fields ({kinds})"
    return f"a {type(content).__name__}"

"""Tables of utterances: CSV, TSV or JSON lines, a row an utterance, in the order in which they were said."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merc_model.data.corpus import SPLITS
from merc_model.data.foreign import what_it_is
from merc_model.errors import UserError

COLUMNS = ("dialogue", "utterance", "speaker", "text", "label", "split", "media", "start", "end")


@dataclass(frozen=True)
class Utterance:
    """One row of a table.

    Attributes:
        place: the file and line it stands in.
        dialogue: the id of its conversation.
        speaker: a name.
        text: what was said; empty where unknown.
        label: an emotion; empty where unlabelled.
        split: train, valid or test.
        media: the recording, or None.
        start: where the utterance begins in ``media``, in seconds.
        end: where it ends, None at the end of ``media``.
        group: what training and validation may not share, such as a session; or None.
    """

    place: str
    dialogue: str
    speaker: str
    text: str
    label: str = ""
    split: str = "train"
    media: Path | None = None
    start: float = 0.0
    end: float | None = None
    group: str | None = None


def read_tables(paths: Sequence[Path], columns: Mapping[str, str] | None = None) -> list[Utterance]:
    """The utterances of some tables, dialogues together, each in the order of its rows.

    Args:
        paths: files that end in .csv, .tsv, .jsonl or .ndjson.
        columns: our name of a column → the name it has in the tables.

    Raises:
        UserError: a table that cannot be read, or cannot be right.
    """
    wanted = {name: name for name in COLUMNS} | dict(columns or {})
    unknown = sorted(set(wanted) - set(COLUMNS))
    if unknown:
        raise UserError(f"--columns: no column {unknown[0]!r}; expected some of {', '.join(COLUMNS)}")
    found: list[Utterance] = []
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for path in paths:
        rows = read_rows(path)
        names = rows[0][1].keys() if rows else ()
        lacking = [wanted[name] for name in ("dialogue", *(columns or ())) if wanted[name] not in names]
        if lacking:
            raise UserError(
                f"{path}: no column {lacking[0]!r} (has {', '.join(names) or 'none'}); map it with --columns"
            )
        for line, row in rows:
            place = f"{path}, line {line}"
            values = {name: row.get(theirs, "").strip() for name, theirs in wanted.items()}
            if not values["dialogue"]:
                raise UserError(f"{place}: {wanted['dialogue']}: empty; every row needs its dialogue")
            if values["utterance"]:
                _once(seen, place, values)
            found.append(utterance_of(path.parent, place, values))
    return in_order(found)


def in_order(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Dialogues one after another, by first appearance; a UserError for one in two splits or for no row at all."""
    dialogues: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        rows = dialogues.setdefault(utterance.dialogue, [])
        if rows and rows[0].split != utterance.split:
            raise UserError(
                f"{utterance.place}: dialogue {utterance.dialogue!r} is in {utterance.split!r} here,"
                f" and in {rows[0].split!r} in {rows[0].place}"
            )
        rows.append(utterance)
    if not dialogues:
        raise UserError("no utterance in the tables")
    return [utterance for rows in dialogues.values() for utterance in rows]


def read_rows(path: Path, other: str | None = None) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table with their line numbers; ``other`` is the encoding of what is not UTF-8, if it is known."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    foreign = what_it_is(raw[:300])
    if foreign is not None:
        raise UserError(f"{path}: {foreign}")
    text = _decoded(path, raw, other)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path, text)
    if suffix not in (".csv", ".tsv"):
        raise UserError(f"{path}: expected a name that ends in .csv, .tsv or .jsonl")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: two columns have the same name: {', '.join(names)}")
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(names):
                raise UserError(f"{path}, line {reader.line_num}: expected {len(names)} cells, got {len(cells)}")
            rows.append((reader.line_num, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _decoded(path: Path, raw: bytes, other: str | None) -> str:
    try:
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        if other is not None:
            return raw.decode(other, "replace")
        found = f"byte {error.start} is {raw[error.start]:#x}"
    raise UserError(f"{path}: not UTF-8 text ({found}); save it as UTF-8")


def _json_lines(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values: Any = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: not valid JSON") from None
        if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
            raise UserError(f"{path}, line {number}: expected an object of texts and numbers")
        rows.append((number, {name: "" if value is None else str(value) for name, value in values.items()}))
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    return [(number, {name: row.get(name, "") for name in names}) for number, row in rows]


def _once(seen: dict[tuple[str, str], tuple[str, str]], place: str, values: Mapping[str, str]) -> None:
    key = (values["dialogue"], values["utterance"])
    if key in seen:
        where, label = seen[key]
        what = f"utterance {key[1]!r} of dialogue {key[0]!r}"
        if label != values["label"]:
            raise UserError(f"{place}: {what} is {values['label']!r} here, and {label!r} in {where}")
        raise UserError(f"{place}: {what} stands in {where} already")
    seen[key] = (place, values["label"])


def utterance_of(folder: Path, place: str, values: Mapping[str, str]) -> Utterance:
    """The utterance of a row, whose media lies in ``folder``; a UserError that begins with ``place`` for what is wrong.

    ``values`` has all of `COLUMNS`, empty where unknown.
    """
    split = {"": "train", "dev": "valid", "val": "valid"}.get(values["split"].lower(), values["split"].lower())
    if split not in SPLITS:
        raise UserError(f"{place}: split: expected one of {', '.join(SPLITS)}, got {values['split']!r}")
    start, end = seconds(place, "start", values["start"]), seconds(place, "end", values["end"])
    if end is not None and end <= (start or 0):
        raise UserError(f"{place}: end {end:g} is not after start {start or 0:g}")
    return Utterance(
        place=place,
        dialogue=values["dialogue"],
        speaker=values["speaker"],
        text=values["text"],
        label=values["label"],
        split=split,
        media=folder / values["media"] if values["media"] else None,
        start=start or 0.0,
        end=end,
    )


def seconds(place: str, name: str, text: str) -> float | None:
    """A time such as 83.5, 01:23.5 or 00:01:23,500 in seconds; None where empty."""
    if not text:
        return None
    parts = text.replace(",", ".").split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    total = sum(number * 60.0**power for power, number in enumerate(reversed(numbers)))
    if not 1 <= len(numbers) <= 3 or not 0 <= total < float("inf"):
        raise UserError(f"{place}: {name}: expected seconds or hours:minutes:seconds, got {text!r}")
    return total

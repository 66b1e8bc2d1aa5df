"""One conversation to predict: an ``.npz`` or ``.json`` without labels.

``.npz``: ``text``, ``audio``, ``visual`` (L, D_m), a row an utterance, NaN rows = missing; ``speakers`` (L,) int64.
``.json``: ``{"text": [[…], …], "audio": [[…], null, …], "speakers": ["Ann", "Bob", …]}``, null rows = missing.
Modalities may be left out; without ``speakers`` it is a monologue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX, MODALITIES
from merc_model.data.arrays import as_numbers, worst_column
from merc_model.data.corpus import Corpus, read_arrays
from merc_model.data.foreign import what_it_is
from merc_model.errors import UserError


def read_conversation(
    path: Path, label_names: Sequence[str], *, warn: Callable[[str], None] = lambda line: None
) -> Corpus:
    """The conversation in ``path`` as an unlabelled corpus of one dialogue.

    A modality that is missing throughout is the same as one left out; ``warn`` takes a line if its rows hold something.

    Raises:
        UserError: a file that is missing, unreadable or holds no single conversation.
    """
    arrays = _read_json(path) if path.suffix.lower() == ".json" else read_arrays(path)
    offsets = arrays.get("offsets")
    if offsets is not None and offsets.size != 2:
        raise UserError(f"{path}: holds {offsets.size - 1} dialogues; give a file with one conversation")
    features = {m: as_numbers(f"{path}: {m}", arrays[m]) for m in MODALITIES if m in arrays}
    for modality, rows in list(features.items()):
        if rows.ndim == 2 and np.isnan(rows).any(axis=1).all():
            del features[modality]
            if why := worst_column(rows):
                warn(f"{modality}: every row has a NaN{why}")
    if not features:
        raise UserError(f"{path}: no features; expected at least one of {', '.join(MODALITIES)}, a row an utterance")
    length = next((len(rows) for rows in features.values() if rows.ndim), 0)
    return Corpus(
        name=path.stem,
        features=features,
        labels=np.full(length, IGNORE_INDEX, np.int64),
        speakers=_speakers(path, arrays.get("speakers"), length),
        offsets=np.array([0, length]),
        dialogue_ids=np.array([path.stem]),
        split=np.array(["test"]),
        label_names=np.array(label_names),
    )


def _speakers(path: Path, speakers: NDArray[Any] | None, length: int) -> NDArray[np.int64]:
    """Indices by order of appearance, whatever names or numbers came."""
    if speakers is None:
        return np.zeros(length, np.int64)
    if speakers.shape != (length,):
        raise UserError(f"{path}: speakers: expected one for each of {length} utterances, got shape {speakers.shape}")
    order: dict[Any, int] = {}
    return np.array([order.setdefault(name, len(order)) for name in speakers.tolist()], np.int64)


def _read_json(path: Path) -> dict[str, NDArray[Any]]:
    try:
        raw = path.read_bytes()
        foreign = what_it_is(raw[:300])
        if foreign is not None:
            raise UserError(f"{path}: {foreign}")
        values = json.loads(raw)  # UTF-8, 16 or 32, with a mark or without
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start} is {raw[error.start]:#x}); save it as UTF-8"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON") from None
    if not isinstance(values, dict):
        raise UserError(f'{path}: expected an object such as {{"text": [[…], …], "speakers": […]}}')
    arrays: dict[str, NDArray[Any]] = {}
    for modality in MODALITIES:
        if modality in values:
            arrays[modality] = read_rows(path, modality, values[modality])
    if "speakers" in values:
        speakers = values["speakers"]
        if not isinstance(speakers, list) or not all(isinstance(name, (str, int)) for name in speakers):
            raise UserError(f"{path}: speakers: expected a list of names or numbers")
        arrays["speakers"] = np.array([str(name) for name in speakers])
    return arrays


def read_rows(path: Path | str, modality: str, rows: Any) -> NDArray[np.float64]:
    """Lists of numbers as a table, NaN rows where one is None; a UserError, which names ``path``, for all else."""
    if not isinstance(rows, list) or not all(row is None or isinstance(row, list) for row in rows):
        raise UserError(f"{path}: {modality}: expected a list with a list of numbers, or null, for each utterance")
    widths = {len(row) for row in rows if row is not None}
    if len(widths) > 1:
        raise UserError(f"{path}: {modality}: rows of different lengths: {', '.join(map(str, sorted(widths)))}")
    width = widths.pop() if widths else 1
    numbers = (value for row in rows if row is not None for value in row)
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers):
        raise UserError(f"{path}: {modality}: expected numbers")
    try:
        return np.array([[np.nan] * width if row is None else row for row in rows], np.float64).reshape(-1, width)
    except OverflowError:
        raise UserError(f"{path}: {modality}: holds a number that is too large") from None
    except (TypeError, ValueError):
        raise UserError(f"{path}: {modality}: expected numbers") from None

"""One conversation to predict: an ``.npz`` or ``.json`` without labels.

``.npz``: ``text``, ``audio``, ``visual`` (L, D_m), a row an utterance, NaN rows = missing; ``speakers`` (L,) int64.
``.json``: ``{"text": [[…], …], "audio": [[…], null, …], "speakers": ["Ann", "Bob", …]}``, null rows = missing.
Modalities may be left out; without ``speakers`` it is a monologue. For people to read, either may have ``transcript``,
``start``, ``end`` (seconds) and ``media`` (paths from the file's folder), a value for each utterance.
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
from merc_model.data.corpus import SPOKEN, Corpus, located, read_arrays
from merc_model.data.foreign import what_it_is
from merc_model.errors import UserError


def read_conversation(
    path: Path,
    label_names: Sequence[str],
    *,
    dialogue: str | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """The conversation in ``path`` as an unlabelled corpus of one dialogue.

    ``dialogue`` says which, where the file is a corpus of several. A modality that is missing throughout is the same
    as one left out; ``warn`` takes a line if its rows hold something.

    Raises:
        UserError: a file that is missing, unreadable or holds no single conversation.
    """
    arrays = _arrays(path, dialogue)
    features = {m: as_numbers(f"{path}: {m}", arrays[m]) for m in MODALITIES if m in arrays}
    for modality, rows in list(features.items()):
        if rows.ndim == 2 and np.isnan(rows).any(axis=1).all():
            del features[modality]
            if why := worst_column(rows):
                warn(f"{modality}: every row has a NaN{why}")
    if not features:
        raise UserError(f"{path}: no features; expected at least one of {', '.join(MODALITIES)}, a row an utterance")
    length = next((len(rows) for rows in features.values() if rows.ndim), 0)
    names = arrays.get("speaker_names", arrays.get("speakers"))
    return Corpus(
        name=path.stem if dialogue is None else f"{path.stem}, {dialogue}",
        features=features,
        labels=np.full(length, IGNORE_INDEX, np.int64),
        speakers=_speakers(path, arrays.get("speakers"), length),
        offsets=np.array([0, length]),
        dialogue_ids=np.array([path.stem]),
        split=np.array(["test"]),
        label_names=np.array(label_names),
        speaker_names=None if names is None or names.dtype.kind != "U" else names,
        **{key: arrays[key] for key in SPOKEN if key in arrays and key != "speaker_names"},
        extraction=str(arrays["extraction"]) if "extraction" in arrays else None,
    )


def _arrays(path: Path, dialogue: str | None) -> dict[str, NDArray[Any]]:
    """What the file holds, or a corpus of one of its dialogues; recordings by their paths from the working folder."""
    if dialogue is None:
        arrays = _read_json(path) if path.suffix.lower() == ".json" else read_arrays(path)
        if "offsets" in arrays and arrays["offsets"].size != 2:
            raise UserError(f"{path}: holds {arrays['offsets'].size - 1} dialogues; say which: --dialogue ID")
        return arrays | ({"media": located(path, arrays["media"])} if "media" in arrays else {})
    corpus = Corpus.load(path)
    ids = corpus.dialogue_ids.tolist()
    if dialogue not in ids:
        raise UserError(f"{path}: no dialogue {dialogue!r}; expected one of {len(ids)}, such as {ids[0]!r}")
    rows = corpus.rows(np.array([ids.index(dialogue)]))
    known = corpus.features | {key: getattr(corpus, key) for key in ("speakers", *SPOKEN)}
    arrays = {key: values[rows] for key, values in known.items() if values is not None}
    return arrays | ({} if corpus.extraction is None else {"extraction": np.array(corpus.extraction)})


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
    arrays |= {name: _texts(path, name, values[name]) for name in ("transcript", "media") if name in values}
    arrays |= {name: _times(path, name, values[name]) for name in ("start", "end") if name in values}
    return arrays


def _texts(path: Path, name: str, values: Any) -> NDArray[np.str_]:
    if not isinstance(values, list) or not all(value is None or isinstance(value, str) for value in values):
        raise UserError(f"{path}: {name}: expected a list of texts, or null, one for each utterance")
    return np.array([value or "" for value in values], str)


def _times(path: Path, name: str, values: Any) -> NDArray[np.float64]:
    try:
        return np.array([np.nan if value is None else float(value) for value in values], np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: {name}: expected a list of seconds, or null, one for each utterance") from None


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

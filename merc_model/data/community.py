"""The community's feature pickles, turned into a corpus.

What the files leave open is settled so:

- Dialogues stand by split, then by id: the id lists are often sets, which have no order.
- A dialogue in no id list is left out, as every loader of these files does; so is an empty one. Both are
  told.
- Only M3Net's files mark a development set. Elsewhere MELD's is among the training dialogues, and a
  validation set is cut from them as from any corpus.
- A row of zeros stands for a failed extraction, a row with an infinity for a broken one: both become missing
  (NaN), and their number is told.
- A label of -1 or -100 is no label.
- Sentences become the transcript where there is one for every utterance; else there is none.
- An IEMOCAP dialogue's id begins with its session, Ses01 to Ses05: sessions become groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus
from merc_model.data.layouts import LAYOUTS, ROBERTA, SPLIT_FIELDS, as_array, recognise
from merc_model.data.published import DATASETS, differences
from merc_model.data.unpickle import load_pickle
from merc_model.errors import UserError

__all__ = ["LAYOUTS", "convert"]


def convert(
    paths: Sequence[str | Path], layout: str | None = None, *, warn: Callable[[str], None] = lambda line: None
) -> Corpus:
    """Read one corpus from the pickles of one layout.

    Args:
        paths: the files that belong together, in any order.
        layout: a name of ``LAYOUTS``, where the files do not show which they have.
        warn: takes a line on each thing a user should look at, such as counts other than the published ones.

    Raises:
        UserError: files that cannot be read safely, have no known layout, or contradict themselves.
    """
    files = [Path(path) for path in paths]
    name, fields = recognise(files, [load_pickle(file, warn=warn) for file in files], layout, warn)
    dataset = DATASETS[LAYOUTS[name].dataset]
    texts = ("text",) if "text" in fields else ROBERTA
    sources = {"text": texts, "audio": ("audio",), "visual": ("visual",)}
    try:
        split = _splits(fields, warn)
        read = ("labels", "speakers", *(part for parts in sources.values() for part in parts))
        lengths = _lengths(fields, read, split, warn)
        labels = np.concatenate([_labels(fields["labels"][d], d, len(dataset.label_names)) for d in lengths])
        speakers = np.concatenate([_speakers(fields["speakers"][d], d) for d in lengths])
        features = {}
        for modality in sources:
            rows = _features({part: fields.pop(part) for part in sources[modality]}, lengths)
            if _mark_missing(rows, modality, warn):
                features[modality] = rows
        transcript = _sentences(fields.get("sentences"), lengths)
    except UserError as error:
        raise UserError(f"{', '.join(map(str, files))} ({name}): {error}") from None
    corpus = Corpus(
        name=name,
        features=features,
        labels=labels,
        speakers=speakers,
        offsets=np.cumsum([0, *lengths.values()], dtype=np.int64),
        dialogue_ids=np.array([str(dialogue) for dialogue in lengths]),
        split=np.array([split[dialogue] for dialogue in lengths]),
        label_names=np.array(dataset.label_names),
        transcript=transcript,
    )
    if LAYOUTS[name].dataset == "iemocap":
        if all(re.match(r"Ses\d\d", str(dialogue)) for dialogue in lengths):
            corpus = corpus.with_groups("prefix:5")
        else:
            warn("dialogue ids do not begin with a session (Ses01 to Ses05), so there are no groups")
    for difference in differences(corpus, dataset):
        warn(f"{difference.splits}: {difference.text}")
    return corpus


def _splits(fields: dict[str, Any], warn: Callable[[str], None]) -> dict[Any, str]:
    """Dialogue → split, by split and then by id."""
    ids = {name: set(_plain(fields.pop(name, ()))) for name in SPLIT_FIELDS}
    both = ids["train"] & ids["test"]
    if both:
        raise UserError(f"dialogue {_sorted(both)[0]!r} is both in the train ids and in the test ids")
    if not ids["valid"] <= ids["train"]:  # the marks stand in another file than the ids
        warn("the file's validation ids are not all among the train ids; none of them is used")
        ids["valid"] = set()
    ids["train"] -= ids["valid"]
    unused = set(fields["labels"]) - ids["train"] - ids["valid"] - ids["test"]
    if unused:
        warn(f"{len(unused)} dialogues are in no id list and are left out: {_few(unused)}")
    return {dialogue: name for name in SPLIT_FIELDS for dialogue in _sorted(ids[name])}


def _plain(ids: Any) -> Iterable[Any]:
    return list(ids.tolist() if isinstance(ids, np.ndarray) else ids)


def _sorted(ids: Iterable[Any]) -> list[Any]:
    """Numbers by value, then everything else by its text."""
    return sorted(ids, key=lambda dialogue: (0, dialogue) if isinstance(dialogue, int) else (1, str(dialogue)))


def _few(ids: Iterable[Any]) -> str:
    few = _sorted(ids)
    return ", ".join(repr(dialogue) for dialogue in few[:3]) + (", …" if len(few) > 3 else "")


def _lengths(
    fields: dict[str, Any], read: Sequence[str], split: dict[Any, str], warn: Callable[[str], None]
) -> dict[Any, int]:
    """Dialogue → utterances, without the empty ones. Every field must agree, and then holds arrays."""
    lengths: dict[Any, int] = {}
    for dialogue in split:
        for field in read:
            if dialogue not in fields[field]:
                raise UserError(f"dialogue {dialogue!r}: not in the field {field}")
            rows = as_array(fields[field][dialogue])
            if rows is None:
                raise UserError(f"dialogue {dialogue!r}: {field}: expected rows of one width, one an utterance")
            expected = lengths.setdefault(dialogue, len(rows))
            if len(rows) != expected:
                raise UserError(f"dialogue {dialogue!r}: {field}: expected {expected} rows, as labels, got {len(rows)}")
            fields[field][dialogue] = rows
    empty = [dialogue for dialogue, length in lengths.items() if length == 0]
    if empty:
        warn(f"{len(empty)} dialogues have no utterance and are left out: {_few(empty)}")
    if len(empty) == len(lengths):
        raise UserError("no dialogue with an utterance")
    return {dialogue: length for dialogue, length in lengths.items() if length}


def _labels(labels: NDArray[Any], dialogue: Any, classes: int) -> NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "biuf" or (labels != np.floor(labels)).any():
        raise UserError(f"dialogue {dialogue!r}: labels: expected whole numbers")
    unlabelled = (labels == -1) | (labels == IGNORE_INDEX)
    wrong = labels[~unlabelled & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        known = f"0 to {classes - 1}, or -1 for unlabelled"
        raise UserError(f"dialogue {dialogue!r}: labels: expected {known}, got {wrong[0]:g}")
    return np.where(unlabelled, IGNORE_INDEX, labels).astype(np.int64)


def _speakers(speakers: NDArray[Any], dialogue: Any) -> NDArray[np.int64]:
    """Names, numbers or one-hot rows as an index, in order of first appearance."""
    if speakers.ndim > 2 or (speakers.dtype.kind == "f" and not np.isfinite(speakers).all()):
        raise UserError(f"dialogue {dialogue!r}: speakers: expected names, numbers or one-hot rows")
    _, first, inverse = np.unique(speakers, axis=0, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.ravel()].astype(np.int64)


def _sentences(field: Any, lengths: dict[Any, int]) -> NDArray[np.str_] | None:
    """What is said, where the field has a text for each utterance."""
    said: list[Any] = []
    for dialogue, length in lengths.items():
        texts = field.get(dialogue) if isinstance(field, dict) else None
        if not isinstance(texts, list | tuple | np.ndarray) or len(texts) != length:
            return None
        said += texts
    return np.array(said) if any(said) and all(isinstance(text, str) for text in said) else None


def _features(parts: dict[str, dict[Any, NDArray[Any]]], lengths: dict[Any, int]) -> NDArray[np.float32]:
    """The rows of all dialogues; the mean of the parts where there are several."""
    width = next(iter(parts.values()))[next(iter(lengths))].shape[-1]
    features = np.empty((sum(lengths.values()), width), np.float32)
    start = 0
    for dialogue, length in lengths.items():
        for field, rows in parts.items():
            if rows[dialogue].shape != (length, width) or rows[dialogue].dtype.kind not in "biuf":
                got = f"{rows[dialogue].shape} of {rows[dialogue].dtype}"
                raise UserError(f"dialogue {dialogue!r}: {field}: expected numbers {(length, width)}, got {got}")
        with np.errstate(over="ignore", invalid="ignore"):  # infinities become missing rows
            features[start : start + length] = np.mean([rows[dialogue] for rows in parts.values()], axis=0)
        start += length
    return features


def _mark_missing(rows: NDArray[np.float32], modality: str, warn: Callable[[str], None]) -> bool:
    """Mark rows of zeros or with infinities as missing; whether any row is left."""
    missing = ~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1)
    if missing.all():
        warn(f"{modality}: no row holds anything; left out")
    elif missing.any():
        warn(f"{modality}: {missing.sum()} of {len(rows)} rows are all zeros or not finite; marked as missing")
    rows[missing] = np.nan
    return not missing.all()

"""A conversation while it lasts: each utterance is answered when it comes, as JSON lines.

A line in: ``{"speaker": "Ann", "text": [0.1, …], "audio": null}``; what it leaves out is missing, and without speakers
it is a monologue. ``text`` may be words, and ``media`` a recording: features are then made of them. With ``"dialogue":
"a name"`` another name begins another conversation. Or the lines are a table, the first its head. The line out has the
numbers of line and utterance, the speaker by order of appearance, the emotion and the probability of each.

The model reads the dialogue so far again for every line; since it is causal, it would answer the whole one alike.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX, MODALITIES
from merc_model.data.conversation import read_rows
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, answer, predict
from merc_model.extract.live import Live
from merc_model.extract.table import COLUMNS, Utterance, utterance_of
from merc_model.model import MercModel

_WORDS = ("media", "start", "end")
_UNREAD = ("utterance", "label", "split")  # other columns of a table
_KEYS = ("dialogue", "speaker", *MODALITIES, *_WORDS, *_UNREAD)


@dataclass
class Conversation:
    """What was said so far.

    Attributes:
        name: of the dialogue, None where lines have none.
        features: modality of the model → a row an utterance, NaN where missing.
        utterances: who spoke, and the words where they are known.
    """

    name: str | None
    features: dict[str, list[NDArray[Any]]]
    utterances: list[Utterance] = field(default_factory=list)


def answers(
    model: MercModel,
    lines: Iterable[bytes],
    complain: Callable[[str], None],
    *,
    live: Callable[[], Live] | None = None,
    folder: Path = Path(),
    words_alone: bool = False,
) -> Iterator[dict[str, Any]]:
    """A row for each line that can be read; ``complain`` takes a sentence on every other, which is as if never said.

    Args:
        model: a causal one.
        lines: JSON in UTF-8, or rows of a table under a head; empty ones are passed over.
        complain: told of lines that cannot be read, and of recordings that cannot be.
        live: makes what reads words and recordings, when the first come; None: nothing can.
        folder: where recordings lie.
        words_alone: text comes as no numbers, since the model reads them with an encoder of its own.

    Raises:
        UserError: a model that is not causal; words where nothing reads them; at the end, lines that could not be read.
    """
    if not model.causal:
        raise UserError(
            "the model is not causal, so a later line would change what was answered: train one with"
            " --set causal=true, or predict the whole conversation without --stream"
        )
    conversation, read, reader, broken, number = _empty(model, None), Lines(), None, 0, 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        warn = partial(_warn, complain, number)
        try:
            values = read(line)
            if values is None:
                continue
            name, utterance, rows = _understood(model, values, folder, words_alone)
            if name != conversation.name:
                conversation = _empty(model, name)
        except UserError as error:
            broken += 1
            warn(f"{error}; left out")
            continue
        if utterance.text or utterance.media:
            if live is None:
                raise UserError(
                    f"line {number}: words or a recording, but the run's corpus was not made by merc extract:"
                    " give features, as lists of numbers"
                )
            reader = reader or live()
            reader.load(utterance)
        try:
            if reader is not None:
                utterance, made = reader.features(conversation.utterances, utterance, warn)
                rows = made | rows
            yield {"line": number} | _answer(model, conversation, utterance, rows)
        except UserError as error:
            broken += 1
            warn(f"{error}; left out")
    if broken:
        raise UserError(f"{broken} of {number} lines could not be read; the others were answered")


def _warn(complain: Callable[[str], None], number: int, text: str) -> None:
    complain(f"line {number}: {text}")


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, or of a pipe, as they come."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _empty(model: MercModel, name: str | None) -> Conversation:
    return Conversation(name, {modality: [] for modality in model.modalities})


def _answer(
    model: MercModel, conversation: Conversation, utterance: Utterance, rows: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """The row of one more utterance, which joins the conversation unless it is refused."""
    features = {}
    for modality, before in conversation.features.items():
        dim = model.dims[modality]
        row = rows.get(modality, np.full(dim, np.nan))
        if len(row) != dim:
            raise UserError(f"{modality}: expected {dim} numbers, got {len(row)}")
        features[modality] = [*before, row]
    known = {modality: np.stack(table) for modality, table in features.items()}
    known = {modality: table for modality, table in known.items() if not np.isnan(table).any(axis=1).all()}
    if not known:
        raise UserError(f"nothing is known of any utterance yet; expected one of {', '.join(model.modalities)}")
    utterances = [*conversation.utterances, utterance]
    order = {name: index for index, name in enumerate(dict.fromkeys(each.speaker for each in utterances))}
    corpus = Corpus(
        name=conversation.name or "stream",
        features=known,
        labels=np.full(len(utterances), IGNORE_INDEX),
        speakers=np.array([order[each.speaker] for each in utterances]),
        offsets=np.array([0, len(utterances)]),
        dialogue_ids=np.array([conversation.name or "stream"]),
        split=np.array(["test"]),
        label_names=np.array(model.label_names),
    )
    probabilities = predict(model, corpus, np.array([0])).probabilities[FUSED][-1]
    conversation.features, conversation.utterances = features, utterances
    named = {} if conversation.name is None else {"dialogue": conversation.name}
    return named | answer(len(utterances), order[utterance.speaker], probabilities, model.label_names)


class Lines:
    """Reads lines one at a time: JSON, or a table where the first line is a head of columns, text or media among them.

    A row of a table is one line, so no cell holds a line break.
    """

    def __init__(self) -> None:
        self._begun, self._columns, self._delimiter = False, list[str](), ","

    def __call__(self, line: bytes) -> dict[str, Any] | None:
        """What a line says, by key; None for the head of a table."""
        if not self._begun:
            self._begun = True
            if line.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"["):
                self._delimiter = "\t" if b"\t" in line else ","
                columns = self._cells(line)
                if not {"text", "media"} & set(columns):
                    raise UserError("not valid JSON, nor names of columns with text or media among them")
                if len(set(columns)) < len(columns):
                    raise UserError(f"two columns have the same name: {', '.join(columns)}")
                self._columns = columns
                return None
        if not self._columns:
            return _json(line)
        cells = self._cells(line)
        if len(cells) != len(self._columns):
            raise UserError(f"expected {len(self._columns)} cells, got {len(cells)}")
        row = zip(self._columns, cells, strict=True)
        return {name: cell for name, cell in row if cell and name in COLUMNS}

    def _cells(self, line: bytes) -> list[str]:
        try:
            text = line.decode("utf-8-sig").rstrip("\r\n")
            return [cell.strip() for cell in next(csv.reader([text], delimiter=self._delimiter, strict=True))]
        except UnicodeDecodeError:
            raise UserError("not UTF-8 text") from None
        except csv.Error as error:
            raise UserError(f"not a row of a table: {error}") from None


def _json(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("not valid JSON") from None
    if not isinstance(values, dict):
        raise UserError('expected an object such as {"speaker": "Ann", "text": [0.1, 0.2]}')
    for key in values:
        if key not in _KEYS:
            raise UserError(f"no key {key!r}; there are: {', '.join(_KEYS)}")
    for key in ("dialogue", "speaker", "media"):
        if not isinstance(values.get(key), str | int | None):
            raise UserError(f"{key}: expected a name or number, got {values[key]!r}")
    return values


def _understood(
    model: MercModel, values: dict[str, Any], folder: Path, words_alone: bool
) -> tuple[str | None, Utterance, dict[str, NDArray[Any]]]:
    """Dialogue, utterance and given features of a line."""
    said = {key: "" if values.get(key) is None else str(values[key]) for key in ("dialogue", "speaker", *_WORDS)}
    given: dict[str, Any] = {modality: values.get(modality) for modality in MODALITIES}
    rows: dict[str, NDArray[Any]] = {}
    if isinstance(given["text"], str):
        said["text"] = given.pop("text").strip()
    elif words_alone and given["text"] is not None:
        raise UserError("text: expected words: the run reads them with an encoder of its own")
    for modality, row in given.items():
        dim = model.dims.get(modality)
        if row is None:
            continue
        if not isinstance(row, list):
            raise UserError(f"{modality}: expected a list of numbers or null, got {str(row)[:40]!r}")
        if len(row) != dim:
            expected = "nothing: it was never seen in training" if dim is None else f"{dim} numbers"
            raise UserError(f"{modality}: expected {expected}, got {len(row)}")
        rows[modality] = read_rows("this utterance", modality, [row])[0]
    utterance = utterance_of(folder, "this utterance", dict.fromkeys(COLUMNS, "") | said)
    return None if values.get("dialogue") is None else said["dialogue"], utterance, rows

"""A conversation while it lasts: each utterance is answered when it comes, as JSON lines.

A line in: ``{"speaker": "Ann", "text": [0.1, …], "audio": null}``; what it leaves out is missing, and without speakers
it is a monologue. With ``"dialogue": "a name"`` another name begins another conversation. The line out has the numbers
of line and utterance, the speaker by order of appearance, the emotion and the probability of each.

The model reads the dialogue so far again for every line; since it is causal, it would answer the whole one alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX, MODALITIES
from merc_model.data.conversation import read_rows
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, answer, predict
from merc_model.model import MercModel

_KEYS = ("dialogue", "speaker", *MODALITIES)


@dataclass
class Conversation:
    """What was said so far.

    Attributes:
        name: of the dialogue, None where lines have none.
        features: modality of the model → a row an utterance, NaN where missing.
        speakers: of the utterances, by name.
    """

    name: str | None
    features: dict[str, list[NDArray[np.float64]]]
    speakers: list[str] = field(default_factory=list)


def answers(model: MercModel, lines: Iterable[bytes], complain: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A row for each line that can be read; ``complain`` takes a sentence on every other, which is as if never said.

    Args:
        model: a causal one.
        lines: JSON in UTF-8; empty ones are passed over.
        complain: told of lines that cannot be read.

    Raises:
        UserError: a model that is not causal; at the end, lines that could not be read.
    """
    if not model.causal:
        raise UserError(
            "the model is not causal, so a later line would change what was answered: train one with"
            " --set causal=true, or predict the whole conversation without --stream"
        )
    conversation, broken, number = _empty(model, None), 0, 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, speaker, rows = _read(model, line)
            if name != conversation.name:
                conversation = _empty(model, name)
            yield {"line": number} | _answer(model, conversation, speaker, rows)
        except UserError as error:
            broken += 1
            complain(f"line {number}: {error}; left out")
    if broken:
        raise UserError(f"{broken} of {number} lines could not be read; the others were answered")


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
    model: MercModel, conversation: Conversation, speaker: str, rows: dict[str, NDArray[np.float64]]
) -> dict[str, Any]:
    """The row of one more utterance, which joins the conversation unless it is refused."""
    features = {modality: [*before, rows[modality]] for modality, before in conversation.features.items()}
    known = {modality: np.stack(table) for modality, table in features.items()}
    known = {modality: table for modality, table in known.items() if not np.isnan(table).any(axis=1).all()}
    if not known:
        raise UserError(f"nothing is known of any utterance yet; expected one of {', '.join(model.modalities)}")
    names = [*conversation.speakers, speaker]
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    corpus = Corpus(
        name=conversation.name or "stream",
        features=known,
        labels=np.full(len(names), IGNORE_INDEX),
        speakers=np.array([order[name] for name in names]),
        offsets=np.array([0, len(names)]),
        dialogue_ids=np.array([conversation.name or "stream"]),
        split=np.array(["test"]),
        label_names=np.array(model.label_names),
    )
    probabilities = predict(model, corpus, np.array([0])).probabilities[FUSED][-1]
    conversation.features, conversation.speakers = features, names
    named = {} if conversation.name is None else {"dialogue": conversation.name}
    return named | answer(len(names), order[speaker], probabilities, model.label_names)


def _read(model: MercModel, line: bytes) -> tuple[str | None, str, dict[str, NDArray[np.float64]]]:
    """Dialogue, speaker and features of a line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError("not valid JSON") from None
    if not isinstance(values, dict):
        raise UserError('expected an object such as {"speaker": "Ann", "text": [0.1, 0.2]}')
    for key in values:
        if key not in _KEYS:
            raise UserError(f"no key {key!r}; there are: {', '.join(_KEYS)}")
    for key in ("dialogue", "speaker"):
        if not isinstance(values.get(key, ""), str | int):
            raise UserError(f"{key}: expected a name or number, got {values[key]!r}")
    rows = {}
    for modality in MODALITIES:
        row, dim = values.get(modality), model.dims.get(modality)
        if row is not None and not isinstance(row, list):
            raise UserError(f"{modality}: expected a list of numbers or null, got {str(row)[:40]!r}")
        if row is not None and len(row) != dim:
            expected = "nothing: it was never seen in training" if dim is None else f"{dim} numbers"
            raise UserError(f"{modality}: expected {expected}, got {len(row)}")
        if dim is not None:
            rows[modality] = np.full(dim, np.nan) if row is None else read_rows("this utterance", modality, [row])[0]
    return str(values["dialogue"]) if "dialogue" in values else None, str(values.get("speaker", "")), rows

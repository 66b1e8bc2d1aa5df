"""A table of utterances → a corpus."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.extract.rows import Work, audio_rows, text_rows, transcribed, visual_rows
from merc_model.extract.settings import Settings
from merc_model.extract.table import Utterance


def extract(
    utterances: Sequence[Utterance],
    settings: Settings,
    work: Work,
    *,
    name: str,
    label_names: Sequence[str] = (),
) -> Corpus:
    """The corpus of some utterances, whose dialogues stand together.

    Args:
        utterances: rows of a table.
        settings: what the features are.
        work: how they are made.
        name: of the corpus.
        label_names: the emotions in their order; otherwise those of the rows, sorted.
    """
    labels, names = _labels(utterances, label_names)
    features = {}
    with_media = any(utterance.media for utterance in utterances)
    if settings.asr is not None and settings.text is not None and with_media:
        utterances = transcribed(utterances, settings, work)
    if settings.text is not None and any(utterance.text for utterance in utterances):
        features["text"] = text_rows(utterances, settings, work)
    if settings.audio is not None and with_media:
        features["audio"] = audio_rows(utterances, settings, work)
    if settings.visual is not None and with_media:
        features["visual"] = visual_rows(utterances, settings, work)
    for modality, rows in list(features.items()):
        if np.isnan(rows).any(axis=1).all():
            work.warn(f"{modality}: nothing could be extracted; the corpus has none")
            del features[modality]
    if not features:
        raise UserError("nothing to extract: the rows have neither text nor a recording that can be read")
    starts = [i for i, u in enumerate(utterances) if i == 0 or u.dialogue != utterances[i - 1].dialogue]
    firsts = [utterances[start] for start in starts]
    offsets = np.array([*starts, len(utterances)])
    groups = [first.group for first in firsts]
    return Corpus(
        name=name,
        features=features,
        labels=labels,
        speakers=_speakers(utterances, offsets),
        offsets=offsets,
        dialogue_ids=np.array([first.dialogue for first in firsts]),
        split=np.array([first.split for first in firsts]),
        label_names=np.array(names),
        groups=np.array(groups) if all(group is not None for group in groups) else None,
        speaker_names=_known([utterance.speaker for utterance in utterances]),
        transcript=_known([utterance.text for utterance in utterances]),
        media=_known(["" if utterance.media is None else str(utterance.media) for utterance in utterances]),
        start=_times([utterance.start if utterance.media else None for utterance in utterances]),
        end=_times([utterance.end for utterance in utterances]),
        extraction=settings.with_contents().json(),
    )


def _labels(utterances: Sequence[Utterance], given: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    names = list(given) or sorted({utterance.label for utterance in utterances if utterance.label})
    if not names:
        raise UserError("no label in the tables, so nothing can be learnt; merc predict takes such a table itself")
    index = {name: number for number, name in enumerate(names)} | {"": IGNORE_INDEX}
    for utterance in utterances:
        if utterance.label not in index:
            raise UserError(f"{utterance.place}: label {utterance.label!r}: expected one of {', '.join(names)}")
    return np.array([index[utterance.label] for utterance in utterances], np.int64), names


def _speakers(utterances: Sequence[Utterance], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    speakers = []
    for start, end in itertools.pairwise(offsets):
        order: dict[str, int] = {}
        speakers += [order.setdefault(utterance.speaker, len(order)) for utterance in utterances[start:end]]
    return np.array(speakers, np.int64)


def _known(texts: list[str]) -> NDArray[np.str_] | None:
    return np.array(texts) if any(texts) else None


def _times(seconds: list[float | None]) -> NDArray[np.float64] | None:
    times = np.array(seconds, np.float64)  # None is NaN
    return None if np.isnan(times).all() else times

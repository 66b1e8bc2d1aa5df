"""The features of each modality, a row an utterance: what is cached taken from there, what fails missing and named."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from merc_model.errors import UserError
from merc_model.extract import reading
from merc_model.extract.cache import Cache, content, identity, key
from merc_model.extract.measures import MEASURES
from merc_model.extract.reading import Encode, Read, Row, attempt, encoded
from merc_model.extract.settings import Settings
from merc_model.extract.table import Utterance
from merc_model.extract.text import TextEncoder

_VERSION = "2"  # of what the features mean; a change makes old caches unused
_BATCH = 32
_FEW = 16  # recordings that are not worth the start of processes
_NAMED = 20  # rows that are named one by one in warnings


@dataclass(frozen=True)
class Work:
    """How features are made, beside what they are.

    Attributes:
        cache: where each is kept as soon as it is made.
        workers: processes that read recordings.
        device: of the encoders.
        warn: takes a line for what is missing.
    """

    cache: Cache
    workers: int = 1
    device: str = "cpu"
    warn: Callable[[str], None] = lambda line: None


def contexts(utterances: Sequence[Utterance], count: int) -> list[str]:
    """What was said before each utterance in its dialogue, ``count`` utterances of it, with their speakers."""
    found = []
    for number, utterance in enumerate(utterances):
        before = [u for u in utterances[max(0, number - count) : number] if u.dialogue == utterance.dialogue and u.text]
        found.append(" ".join(map(_said, before)))
    return found


def _said(utterance: Utterance) -> str:
    """What is said, behind the speaker; empty where nothing is known to be."""
    named = utterance.text and utterance.speaker
    return f"{utterance.speaker}: {utterance.text}" if named else utterance.text


def read_texts(utterances: Sequence[Utterance], settings: Settings) -> tuple[list[str], list[str]]:
    """What the text encoder reads of each utterance, and before it."""
    said = [_said(utterance) if settings.text_speakers else utterance.text for utterance in utterances]
    return said, contexts(utterances, settings.text_context)


def text_rows(utterances: Sequence[Utterance], settings: Settings, work: Work) -> Row:
    """``(U, D)``; an utterance without text is missing."""
    assert settings.text is not None
    said, before = read_texts(utterances, settings)
    own = key(_VERSION, "text", identity(settings.text), settings.text_pooling)
    keys = [key(own, text, context) if text else "" for text, context in zip(said, before, strict=True)]
    rows = work.cache.get(set(keys))
    lacking = {k: i for i, k in enumerate(keys) if k and k not in rows}
    order = sorted(lacking.values(), key=lambda i: len(said[i]) + len(before[i]))
    encoder = TextEncoder(settings.text, settings.text_pooling, work.device) if lacking else None
    with tqdm(total=len(order), desc="text", disable=None) as progress:
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            assert encoder is not None
            made = encoder.encode([said[i] for i in batch], [before[i] for i in batch])
            new = {keys[i]: row for i, row in zip(batch, made, strict=True)}
            work.cache.put(new)
            rows |= new
            progress.update(len(batch))
    return _table(keys, rows)


def transcribed(utterances: Sequence[Utterance], settings: Settings, work: Work) -> list[Utterance]:
    """The utterances, those without text filled with what is heard."""
    assert settings.asr is not None
    silent = [utterance for utterance in utterances if not utterance.text and utterance.media]
    prepare = partial(reading.asr, settings, work.device)
    keys = _keys("text", key("asr", identity(settings.asr)), silent, work)
    texts = work.cache.texts({k for k in keys if k})
    texts |= _made("text", silent, keys, texts, prepare, work, work.cache.put_text)
    heard = {id(utterance): texts.get(k, "") for utterance, k in zip(silent, keys, strict=True)}
    return [replace(utterance, text=heard.get(id(utterance), utterance.text)) for utterance in utterances]


def audio_rows(utterances: Sequence[Utterance], settings: Settings, work: Work) -> Row:
    """``(U, D)`` of the sound."""
    assert settings.audio is not None
    own = settings.audio if settings.audio in MEASURES else key("speech", identity(settings.audio))
    return _rows("audio", own, utterances, partial(reading.audio, settings, work.device), work)


def visual_rows(utterances: Sequence[Utterance], settings: Settings, work: Work) -> Row:
    """``(U, D)`` of the pictures."""
    assert settings.visual is not None
    own = key("picture", identity(settings.visual), str(settings.frames), *(["faces"] if settings.faces else []))
    return _rows("visual", own, utterances, partial(reading.visual, settings, work.device), work)


def _rows(
    modality: str,
    own: str,
    utterances: Sequence[Utterance],
    prepare: Callable[[], tuple[Read, Encode]],
    work: Work,
) -> Row:
    keys = _keys(modality, own, utterances, work)
    rows = work.cache.get({k for k in keys if k})
    rows |= _made(modality, utterances, keys, rows, prepare, work, lambda k, row: work.cache.put({k: row}))
    return _table(keys, rows)


def _keys(modality: str, own: str, utterances: Sequence[Utterance], work: Work) -> list[str]:
    """A key for each recorded utterance, empty where there is no recording; one that is not there is named."""
    keys, failed = [], []
    for utterance in utterances:
        try:
            keys.append(_media_key(modality, own, utterance))
        except OSError as error:
            keys.append("")
            failed.append((utterance, f"is not there ({error.strerror})"))
    _name(modality, failed, work)
    return keys


def _media_key(modality: str, own: str, utterance: Utterance) -> str:
    if utterance.media is None:
        return ""
    return key(_VERSION, modality, own, content(utterance.media), f"{utterance.start} {utterance.end}")


def _made(
    modality: str,
    utterances: Sequence[Utterance],
    keys: Sequence[str],
    known: dict[str, Any],
    prepare: Callable[[], tuple[Read, Encode]],
    work: Work,
    keep: Callable[[str, Any], None],
) -> dict[str, Any]:
    """What is not known yet, by key; what fails is named. The encoder is loaded only where there is work for it."""
    todo = {k: utterance for k, utterance in zip(keys, utterances, strict=True) if k and k not in known}
    if not todo:
        return {}
    read, encode = prepare()
    made, failed = {}, []
    answers = tqdm(_answers(list(todo.values()), read, work.workers), total=len(todo), desc=modality, disable=None)
    for (k, utterance), (found, why) in zip(todo.items(), answers, strict=True):
        value, why = (found, why) if why else encoded(encode, found)
        if why:
            failed.append((utterance, why))
        else:
            made[k] = value
            keep(k, value)
    _name(modality, failed, work)
    return made


def _name(modality: str, failed: Sequence[tuple[Utterance, str]], work: Work) -> None:
    for utterance, why in failed[:_NAMED]:
        work.warn(f"{modality} is missing: {utterance.place}: {utterance.media} {why}")
    if len(failed) > _NAMED:
        work.warn(f"{modality} is missing in {len(failed) - _NAMED} more rows")


def _answers(utterances: Sequence[Utterance], read: Read, workers: int) -> Iterator[tuple[Any, str]]:
    """What was read of each, or why it was not; a few ahead, so that no more is held than those."""
    if workers < 2 or len(utterances) < _FEW:
        yield from (attempt(read, utterance) for utterance in utterances)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[tuple[Any, str]]] = deque()
        try:
            for utterance in utterances:
                waiting.append(pool.submit(attempt, read, utterance))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError("a process of the extraction was killed; try again with --workers 1") from None


def _table(keys: Sequence[str], rows: dict[str, Row]) -> Row:
    """``(U, D)``, NaN where there is no row."""
    width = len(next(iter(rows.values()))) if rows else 1
    missing = np.full(width, np.nan, np.float32)
    return np.stack([rows.get(k, missing) for k in keys])

"""A table of utterances → a corpus: each modality extracted, what is cached taken from there, what fails missing."""

from __future__ import annotations

import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.extract.audio import PROSODY, SpeechEncoder, prosody
from merc_model.extract.cache import Cache, content, identity, key
from merc_model.extract.media import MediaError, frames, waveform
from merc_model.extract.table import Utterance
from merc_model.extract.text import TextEncoder
from merc_model.extract.visual import ImageEncoder

_VERSION = "1"  # of what the features mean; a change makes old caches unused
_BATCH = 32
_NAMED = 20  # rows that are named one by one in warnings

Row = NDArray[np.float32]
Job = tuple[Utterance, Callable[[Utterance], Row]]


@dataclass(frozen=True)
class Settings:
    """How features are made; stored in the corpus and in the run folder.

    Attributes:
        text: encoder, by name or folder; None leaves text out.
        text_pooling: mean, first, last or max, over the tokens of an utterance.
        text_context: utterances before it that the encoder sees.
        audio: ``prosody``, or a speech encoder by name or folder; None leaves audio out.
        visual: an image encoder by name or folder; None leaves visual out.
        frames: pictures of an utterance.
    """

    text: str | None = "sentence-transformers/all-MiniLM-L6-v2"
    text_pooling: str = "mean"
    text_context: int = 0
    audio: str | None = PROSODY
    visual: str | None = None
    frames: int = 8

    def json(self) -> str:
        """The settings as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, line: str) -> Settings:
        """The settings of a line that ``json`` made."""
        try:
            values = json.loads(line)
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError):
            raise UserError(f"the settings of the extraction cannot be read: {line[:60]!r}") from None


def extract(
    utterances: Sequence[Utterance],
    settings: Settings,
    *,
    name: str,
    cache: Cache,
    label_names: Sequence[str] = (),
    workers: int = 1,
    device: str = "cpu",
    warn: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """The corpus of some utterances, whose dialogues stand together.

    Args:
        utterances: rows of a table.
        settings: the encoders.
        name: of the corpus.
        cache: where features are kept as soon as they are made.
        label_names: the emotions in their order; otherwise those of the rows, sorted.
        workers: processes for ``prosody``.
        device: of the encoders.
        warn: takes a line for what is missing.
    """
    labels, names = _labels(utterances, label_names)
    features = {}
    if settings.text is not None and any(utterance.text for utterance in utterances):
        features["text"] = _text(utterances, settings, cache, device)
    with_media = any(utterance.media for utterance in utterances)
    if settings.audio is not None and with_media:
        features["audio"] = _audio(utterances, settings.audio, cache, workers, device, warn)
    if settings.visual is not None and with_media:
        features["visual"] = _visual(utterances, settings, cache, device, warn)
    for modality, rows in list(features.items()):
        if np.isnan(rows).any(axis=1).all():
            warn(f"{modality}: nothing could be extracted; the corpus has none")
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
        extraction=settings.json(),
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


def contexts(utterances: Sequence[Utterance], count: int) -> list[str]:
    """What was said before each utterance in its dialogue, ``count`` utterances of it, with their speakers."""
    found = []
    for number, utterance in enumerate(utterances):
        before = [u for u in utterances[max(0, number - count) : number] if u.dialogue == utterance.dialogue and u.text]
        found.append(" ".join(f"{u.speaker}: {u.text}" if u.speaker else u.text for u in before))
    return found


def _text(utterances: Sequence[Utterance], settings: Settings, cache: Cache, device: str) -> Row:
    assert settings.text is not None
    before = contexts(utterances, settings.text_context)
    own = key(_VERSION, "text", identity(settings.text), settings.text_pooling)
    keys = [key(own, u.text, context) if u.text else "" for u, context in zip(utterances, before, strict=True)]
    rows = cache.get(set(keys))
    lacking = {k: i for i, k in enumerate(keys) if k and k not in rows}
    order = sorted(lacking.values(), key=lambda i: len(utterances[i].text) + len(before[i]))
    encoder = TextEncoder(settings.text, settings.text_pooling, device) if lacking else None
    with tqdm(total=len(order), desc="text", disable=None) as progress:
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            assert encoder is not None
            made = encoder.encode([utterances[i].text for i in batch], [before[i] for i in batch])
            new = {keys[i]: row for i, row in zip(batch, made, strict=True)}
            cache.put(new)
            rows |= new
            progress.update(len(batch))
    return _table(keys, rows)


def _audio(
    utterances: Sequence[Utterance],
    encoder: str,
    cache: Cache,
    workers: int,
    device: str,
    warn: Callable[[str], None],
) -> Row:
    if encoder == PROSODY:
        return _media("audio", PROSODY, utterances, _prosody, cache, workers, warn)
    speech = SpeechEncoder(encoder, device)
    own = key("speech", identity(encoder))
    return _media("audio", own, utterances, lambda u: speech(waveform(_path(u), u.start, u.end)), cache, 1, warn)


def _visual(
    utterances: Sequence[Utterance], settings: Settings, cache: Cache, device: str, warn: Callable[[str], None]
) -> Row:
    assert settings.visual is not None
    image = ImageEncoder(settings.visual, device)
    own, count = key("image", identity(settings.visual), str(settings.frames)), settings.frames
    return _media("visual", own, utterances, lambda u: image(frames(_path(u), u.start, u.end, count)), cache, 1, warn)


def _media(
    modality: str,
    own: str,
    utterances: Sequence[Utterance],
    compute: Callable[[Utterance], Row],
    cache: Cache,
    workers: int,
    warn: Callable[[str], None],
) -> Row:
    """The features of recordings; a row that fails is missing, and named."""
    keys, failed = [], []
    for utterance in utterances:
        try:
            keys.append(_media_key(modality, own, utterance))
        except OSError as error:
            keys.append("")
            failed.append((utterance, f"is not there ({error.strerror})"))
    rows = cache.get(set(keys))
    todo = [(k, u) for k, u in zip(keys, utterances, strict=True) if k and k not in rows]
    jobs: list[Job] = [(utterance, compute) for _, utterance in todo]
    answers = tqdm(_answers(jobs, workers), total=len(jobs), desc=modality, disable=None)
    for (k, utterance), answer in zip(todo, answers, strict=True):
        if isinstance(answer, str):
            failed.append((utterance, answer))
        else:
            rows[k] = answer
            cache.put({k: answer})
    for utterance, why in failed[:_NAMED]:
        warn(f"{modality} is missing: {utterance.place}: {utterance.media} {why}")
    if len(failed) > _NAMED:
        warn(f"{modality} is missing in {len(failed) - _NAMED} more rows")
    return _table(keys, rows)


def _answers(jobs: Sequence[Job], workers: int) -> Iterator[Row | str]:
    if workers < 2 or len(jobs) < 2:
        yield from map(_attempt, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_attempt, jobs, chunksize=4)
        except BrokenProcessPool:
            raise UserError("a process of the extraction was killed; try again with --workers 1") from None


def _attempt(job: Job) -> Row | str:
    """The features of one utterance, or why there are none."""
    utterance, compute = job
    try:
        row = compute(utterance)
    except MediaError as error:
        return str(error)
    return row if np.isfinite(row).all() else "gives features that are not finite"


def _prosody(utterance: Utterance) -> Row:
    return prosody(waveform(_path(utterance), utterance.start, utterance.end))


def _path(utterance: Utterance) -> Path:
    assert utterance.media is not None
    return utterance.media


def _media_key(modality: str, own: str, utterance: Utterance) -> str:
    if utterance.media is None:
        return ""
    return key(_VERSION, modality, own, content(utterance.media), f"{utterance.start} {utterance.end}")


def _table(keys: Sequence[str], rows: dict[str, Row]) -> Row:
    """``(U, D)``, NaN where there is no row."""
    width = len(next(iter(rows.values()))) if rows else 1
    missing = np.full(width, np.nan, np.float32)
    return np.stack([rows.get(k, missing) for k in keys])

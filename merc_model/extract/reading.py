"""What is read of a recording for an encoder, and what that makes of it, by the settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.extract.audio import RATE, SpeechEncoder
from merc_model.extract.measures import MEASURES
from merc_model.extract.media import MediaError, frames, waveform
from merc_model.extract.settings import Settings
from merc_model.extract.speech import Recogniser
from merc_model.extract.table import Utterance
from merc_model.extract.visual import Picture, PictureEncoder, faces

Row = NDArray[np.float32]
Read = Callable[[Utterance], Any]  # can be sent to another process
Encode = Callable[[Any], Any]


def asr(settings: Settings, device: str) -> tuple[Read, Encode]:
    """Words from sound."""
    assert settings.asr is not None
    recogniser = Recogniser(settings.asr, device)
    return partial(_sound, rate=recogniser.rate), recogniser


def audio(settings: Settings, device: str) -> tuple[Read, Encode]:
    """Features of the sound."""
    assert settings.audio is not None
    if settings.audio in MEASURES:
        return partial(_measured, name=settings.audio), _same
    speech = SpeechEncoder(settings.audio, device)
    return partial(_sound, rate=speech.rate), speech


def visual(settings: Settings, device: str) -> tuple[Read, Encode]:
    """Features of the pictures."""
    assert settings.visual is not None
    read = partial(_pictures, count=settings.frames, only_faces=settings.faces)
    return read, PictureEncoder(settings.visual, device)


def attempt(read: Read, utterance: Utterance) -> tuple[Any, str]:
    """What is read of an utterance, or why it is not."""
    try:
        return read(utterance), ""
    except MediaError as error:
        return None, str(error)


def encoded(encode: Encode, found: Any) -> tuple[Any, str]:
    """What an encoder makes of that, or why it is of no use."""
    value: Any = encode(found)
    if isinstance(value, np.ndarray) and not np.isfinite(value).all():
        return value, "gives features that are not finite"
    return value, ""


def _sound(utterance: Utterance, rate: int) -> Row:
    assert utterance.media is not None
    return waveform(utterance.media, utterance.start, utterance.end, rate)


def _measured(utterance: Utterance, name: str) -> Row:
    return MEASURES[name](_sound(utterance, RATE))


def _pictures(utterance: Utterance, count: int, only_faces: bool) -> list[Picture]:
    assert utterance.media is not None
    pictures = frames(utterance.media, utterance.start, utterance.end, count)
    return faces(pictures) if only_faces else pictures


def _same(row: Row) -> Row:
    return row

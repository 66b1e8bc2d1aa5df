"""What was said in a conversation, by whom, when and in which recording: for people to read, not for the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.data.conversation import read_file
from merc_model.data.corpus import Corpus, read_arrays
from merc_model.errors import UserError


@dataclass(frozen=True)
class Spoken:
    """L utterances; what is not known of one is empty or NaN.

    Attributes:
        speakers: names.
        words: what was said.
        starts: where in the recording it begins, in seconds.
        ends: where it ends.
        media: the recordings, relative to the working folder.
    """

    speakers: list[str]
    words: list[str]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    media: list[Path | None]

    @property
    def timed(self) -> bool:
        """Whether all utterances stand in order on one line of time."""
        one_recording = len(set(self.media)) == 1
        return one_recording and bool(np.isfinite(self.starts).all() and (np.diff(self.starts) >= 0).all())


def read_spoken(path: Path, conversation: Corpus) -> Spoken:
    """What the file of a conversation has of each utterance beside its features.

    Raises:
        UserError: a field without a value for each utterance, or times that cannot be.
    """
    arrays = read_file(path)
    length = len(conversation.labels)
    starts, ends = (_numbers(path, arrays, name, length) for name in ("start", "end"))
    wrong = np.flatnonzero((starts < 0) | (ends <= np.nan_to_num(starts)) | np.isinf(starts) | np.isinf(ends))
    if len(wrong):
        raise UserError(
            f"{path}: start and end: expected 0 <= start < end, got {starts[wrong[0]]:g} and {ends[wrong[0]]:g}"
            f" at utterance {wrong[0] + 1}"
        )
    names = arrays.get("speaker_names", arrays.get("speakers"))
    if names is None or names.dtype.kind != "U":
        names = np.array([f"speaker {number}" for number in conversation.speakers])
    return Spoken(
        speakers=_texts(path, {"speaker_names": names}, "speaker_names", length),
        words=_texts(path, arrays, "transcript", length),
        starts=starts,
        ends=ends,
        media=[path.parent / name if name else None for name in _texts(path, arrays, "media", length)],
    )


def read_words(path: Path, corpus: Corpus) -> list[str] | None:
    """The transcript in the file of a corpus, or None."""
    arrays = read_arrays(path)
    return _texts(path, arrays, "transcript", len(corpus.labels)) if "transcript" in arrays else None


def _texts(path: Path, arrays: dict[str, NDArray[Any]], name: str, length: int) -> list[str]:
    values = arrays.get(name, np.full(length, ""))
    if values.dtype.kind != "U" or values.shape != (length,):
        raise UserError(f"{path}: {name}: expected a text for each of {length} utterances, got {_shape(values)}")
    return [str(value) for value in values]


def _numbers(path: Path, arrays: dict[str, NDArray[Any]], name: str, length: int) -> NDArray[np.float64]:
    values = arrays.get(name, np.full(length, np.nan))
    if values.dtype.kind not in "fiu" or values.shape != (length,):
        raise UserError(f"{path}: {name}: expected seconds for each of {length} utterances, got {_shape(values)}")
    return values.astype(np.float64)


def _shape(values: NDArray[Any]) -> str:
    return f"shape {values.shape} of {values.dtype}"

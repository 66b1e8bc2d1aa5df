"""What was said in a conversation, by whom, when and in which recording: for people to read, not for the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from merc_model.data.corpus import Corpus


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

    @classmethod
    def of(cls, conversation: Corpus) -> Self:
        """What a corpus holds of its utterances beside features and labels; who has no name is numbered."""
        length = len(conversation.labels)
        empty, unknown = np.full(length, ""), np.full(length, np.nan)
        names, words, media = (
            (empty if texts is None else texts).tolist()
            for texts in (conversation.speaker_names, conversation.transcript, conversation.media)
        )
        return cls(
            speakers=[
                name or f"speaker {number}" for name, number in zip(names, conversation.speakers.tolist(), strict=True)
            ],
            words=words,
            starts=unknown if conversation.start is None else conversation.start,
            ends=unknown if conversation.end is None else conversation.end,
            media=[Path(name) if name else None for name in media],
        )

    @property
    def timed(self) -> bool:
        """Whether all utterances stand in order on one line of time."""
        one_recording = len(set(self.media)) == 1
        return one_recording and bool(np.isfinite(self.starts).all() and (np.diff(self.starts) >= 0).all())

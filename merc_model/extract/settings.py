"""How features are made; the same settings give the same features."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from merc_model.errors import UserError
from merc_model.extract.audio import PROSODY
from merc_model.extract.cache import identity

_ENCODERS = ("text", "asr", "audio", "visual")


@dataclass(frozen=True)
class Settings:
    """Stored in the corpus and in the run folder.

    Attributes:
        text: encoder, by name or folder; None leaves text out.
        text_pooling: mean, first, last or max, over the tokens of an utterance.
        text_context: utterances before it that the encoder sees.
        text_speakers: the encoder reads who says an utterance before what is said.
        asr: recogniser of speech, by name or folder, that fills empty texts; None leaves them missing.
        audio: ``prosody``, ``egemaps``, ``praat``, or a speech encoder by name or folder; None leaves audio out.
        visual: an image or video encoder by name or folder; None leaves visual out.
        frames: pictures of an utterance.
        faces: only the largest face of each picture is seen.
        contents: SHA-256 of the encoders that are folders, under text, asr, audio or visual.
    """

    text: str | None = "sentence-transformers/all-MiniLM-L6-v2"
    text_pooling: str = "mean"
    text_context: int = 0
    text_speakers: bool = False
    asr: str | None = None
    audio: str | None = PROSODY
    visual: str | None = None
    frames: int = 8
    faces: bool = False
    contents: dict[str, str] = field(default_factory=dict)

    def json(self) -> str:
        """The settings as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, line: str) -> Settings:
        """The settings of a line that ``json`` made."""
        try:
            values = json.loads(line)
            values = {"text_speakers": False} | values  # which older files lack
            return cls(**{each.name: values[each.name] for each in fields(cls)})
        except (ValueError, KeyError, TypeError):
            raise UserError(f"the settings of the extraction cannot be read: {line[:60]!r}") from None

    def with_contents(self) -> Settings:
        """The settings with ``contents`` as they are on this machine."""
        named = {name: getattr(self, name) for name in _ENCODERS}
        folders = {name: encoder for name, encoder in named.items() if encoder and Path(encoder).is_dir()}
        return replace(self, contents={name: identity(folder) for name, folder in folders.items()})

    def only(self, modalities: Iterable[str]) -> Settings:
        """The settings, with the modalities that are not named left out."""
        left_out: dict[str, Any] = dict.fromkeys({"text", "audio", "visual"} - set(modalities))
        return replace(self, **left_out)

    def difference(self, other: Settings) -> str | None:
        """What of these settings is not so in ``other``, in words, or None; a folder is what is in it."""
        for name in (each.name for each in fields(self) if each.name != "contents"):
            own, others = getattr(self, name), getattr(other, name)
            contents = self.contents.get(name), other.contents.get(name)
            if contents[0] != contents[1] and own == others:
                return f"{name} encoder {own} with other contents"
            if own != others and (contents[0] is None or contents[0] != contents[1]):
                return f"{name} {own}, not {others}"
        return None

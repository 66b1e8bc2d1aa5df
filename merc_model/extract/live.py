"""Features of utterances as they come, made as those of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from merc_model.extract import reading
from merc_model.extract.reading import Row, attempt, encoded
from merc_model.extract.rows import read_texts
from merc_model.extract.settings import Settings
from merc_model.extract.table import Utterance
from merc_model.extract.text import TextEncoder


class Live:
    """Encoders that stay loaded, each from the first utterance on that needs it.

    Args:
        settings: how features are made.
        device: of the encoders.
    """

    def __init__(self, settings: Settings, device: str = "cpu") -> None:
        self._settings, self._device = settings, device
        self._loaded: dict[str, Any] = {}

    def load(self, utterance: Utterance) -> None:
        """Load the encoders of an utterance; a UserError where one cannot be."""
        for name in self._needed(utterance):
            if name in self._loaded:
                continue
            if name == "text":
                assert self._settings.text is not None
                self._loaded[name] = TextEncoder(self._settings.text, self._settings.text_pooling, self._device)
            else:
                self._loaded[name] = getattr(reading, name)(self._settings, self._device)

    def features(
        self, before: Sequence[Utterance], utterance: Utterance, warn: Callable[[str], None]
    ) -> tuple[Utterance, dict[str, Row]]:
        """An utterance, with its words where they were heard, and what is known of it by modality.

        Args:
            before: what was said before it in the conversation.
            utterance: one whose encoders are loaded.
            warn: takes a line for what its recording does not give.
        """
        rows: dict[str, Row] = {}
        needed = list(self._needed(utterance))
        for name in (name for name in needed if name != "text"):
            read, encode = self._loaded[name]
            found, why = attempt(read, utterance)
            value, why = (found, why) if why else encoded(encode, found)
            if why:
                warn(f"{'text' if name == 'asr' else name} is missing: {utterance.media} {why}")
            elif name == "asr":
                utterance = replace(utterance, text=value)
            else:
                rows[name] = value
        if "text" in needed and utterance.text:
            seen = before[len(before) - min(self._settings.text_context, len(before)) :]
            said, contexts = read_texts([*seen, utterance], self._settings)
            rows["text"] = self._loaded["text"].encode(said[-1:], contexts[-1:])[0]
        return utterance, rows

    def _needed(self, utterance: Utterance) -> Iterator[str]:
        """The encoders of an utterance, in their order."""
        settings, recorded = self._settings, utterance.media is not None
        heard = settings.text is not None and settings.asr is not None and not utterance.text and recorded
        if heard:
            yield "asr"
        if settings.text is not None and (utterance.text or heard):
            yield "text"
        if settings.audio is not None and recorded:
            yield "audio"
        if settings.visual is not None and recorded:
            yield "visual"

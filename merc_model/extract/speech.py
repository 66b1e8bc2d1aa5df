"""What was said, by a recogniser of speech, where a table has no text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from merc_model.errors import UserError
from merc_model.extract import pretrained
from merc_model.extract.audio import pieces


class Recogniser:
    """A speech recogniser of Hugging Face (Whisper, wav2vec 2.0 with CTC).

    Args:
        name: of a model, or a folder.
        device: where it runs.

    Attributes:
        rate: of the samples that it takes, a second.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        (config,) = pretrained.load("speech recogniser", name, "AutoConfig")
        kind = "AutoModelForSpeechSeq2Seq" if getattr(config, "is_encoder_decoder", False) else "AutoModelForCTC"
        self._processor, model = pretrained.load("speech recogniser", name, "AutoProcessor", kind)
        if not hasattr(self._processor, "feature_extractor"):
            raise UserError(f"speech recogniser {name!r} has no feature extractor with its tokenizer")
        self._model, self._device = model.to(device).eval(), device
        self.rate: int = self._processor.feature_extractor.sampling_rate

    def __call__(self, samples: NDArray[np.float32]) -> str:
        """The words of one utterance."""
        from transformers import pipeline

        if not hasattr(self, "_pipeline"):
            self._pipeline = pipeline(
                "automatic-speech-recognition",
                model=self._model,
                tokenizer=self._processor.tokenizer,
                feature_extractor=self._processor.feature_extractor,
                device=self._device,
            )
        heard = [self._pipeline({"raw": piece, "sampling_rate": self.rate}) for piece in pieces(samples, self.rate)]
        return " ".join(word for each in heard for word in each["text"].split())

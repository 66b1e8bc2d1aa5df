"""Audio features: prosody and spectrum by librosa, or the hidden states of a Hugging Face speech encoder."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from merc_model.errors import UserError
from merc_model.extract import pretrained

PROSODY = "prosody"
RATE = 16_000  # of the measures; an encoder has its own
_FRAME, _HOP = 1024, 256
_PIECE = 30.0  # seconds


def prosody(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(49,)`` measures of an utterance.

    Duration; pitch (mean, sd, range of voiced frames in semitones over 55 Hz, share voiced); mean and sd of energy in
    dB, zero crossings, spectral centroid, bandwidth, roll-off and flatness, of 13 MFCC and of the change of three.
    """
    try:
        import librosa
    except ImportError:
        raise UserError("audio features need librosa: pip install 'merc-kdc[extract]'") from None
    duration = len(samples) / RATE
    samples = np.pad(samples, (0, max(0, 3 * _FRAME - len(samples))))
    power = np.abs(librosa.stft(samples, n_fft=_FRAME, hop_length=_HOP)) ** 2  # [frequencies, frames]
    size = {"S": np.sqrt(power), "sr": RATE}
    energy = librosa.feature.rms(S=size["S"], frame_length=_FRAME)[0]
    cepstrum = librosa.feature.mfcc(S=librosa.power_to_db(librosa.feature.melspectrogram(S=power, sr=RATE)), n_mfcc=13)
    over_time = [
        20 * np.log10(energy + 1e-6),
        librosa.feature.zero_crossing_rate(samples, frame_length=_FRAME, hop_length=_HOP)[0],
        librosa.feature.spectral_centroid(**size)[0],
        librosa.feature.spectral_bandwidth(**size)[0],
        librosa.feature.spectral_rolloff(**size)[0],
        librosa.feature.spectral_flatness(S=size["S"])[0],
        *cepstrum,
        *np.diff(cepstrum[:3], axis=1),
    ]
    pitch = librosa.yin(samples, fmin=60, fmax=500, sr=RATE, frame_length=_FRAME, hop_length=_HOP)
    loud = energy[: len(pitch)] > 0.1 * energy.max()
    voiced = loud & (pitch[: len(loud)] > 62) & (pitch[: len(loud)] < 490)
    tones = 12 * np.log2(pitch[: len(loud)][voiced] / 55) if voiced.any() else np.zeros(1)
    values = [duration, tones.mean(), tones.std(), np.ptp(tones), voiced.mean()]
    for track in over_time:
        values += [track.mean(), track.std()]
    return np.array(values, np.float32)


def pieces(samples: NDArray[np.float32], rate: int) -> list[NDArray[np.float32]]:
    """An utterance in parts of at most 30 s: memory grows with the square of the length, and Whisper ends there."""
    return np.array_split(samples, math.ceil(len(samples) / (_PIECE * rate)))


class SpeechEncoder:
    """The hidden states of a speech encoder (wav2vec 2.0, HuBERT, WavLM, Whisper's encoder), their mean over time.

    Args:
        name: of a model, or a folder.
        device: where it runs.

    Attributes:
        rate: of the samples that it takes, a second.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self._extractor, model = pretrained.load("audio encoder", name, "AutoFeatureExtractor", "AutoModel")
        self._model, self._device = pretrained.encoder(model).to(device).eval(), device
        self.rate: int = self._extractor.sampling_rate
        self._padded: int | None = getattr(self._extractor, "n_samples", None)  # what Whisper fills pieces up to

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(D,)`` of one utterance."""
        samples = np.pad(samples, (0, max(0, self.rate // 10 - len(samples))))  # what the convolutions need
        hidden = np.concatenate([self._hidden(piece) for piece in pieces(samples, self.rate)])  # [T, D]
        row: NDArray[np.float32] = hidden.mean(axis=0)
        return row

    def _hidden(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = self._extractor(samples, sampling_rate=self.rate, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            hidden = self._model(**inputs).last_hidden_state[0].float().cpu().numpy()  # [T, D]
        heard = 1.0 if self._padded is None else min(len(samples) / self._padded, 1.0)
        states: NDArray[np.float32] = hidden[: math.ceil(heard * len(hidden))]
        return states

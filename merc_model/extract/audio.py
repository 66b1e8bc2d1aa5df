"""Audio features: prosody and spectrum by librosa, or the hidden states of a Hugging Face speech encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merc_model.errors import UserError
from merc_model.extract.media import RATE

PROSODY = "prosody"
_FRAME, _HOP = 1024, 256


def prosody(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(49,)`` measures of an utterance.

    Duration; pitch (mean, sd, range of voiced frames in semitones over 55 Hz, share voiced); mean and sd of energy in
    dB, zero crossings, spectral centroid, bandwidth, roll-off and flatness, of 13 MFCC and of the change of three.
    """
    try:
        import librosa
    except ImportError:
        raise UserError("audio features need librosa: pip install 'merc-kdc[extract]'") from None
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
    values = [len(samples) / RATE, tones.mean(), tones.std(), np.ptp(tones), voiced.mean()]
    for track in over_time:
        values += [track.mean(), track.std()]
    return np.array(values, np.float32)


class SpeechEncoder:
    """The hidden states of a speech encoder (wav2vec 2.0, HuBERT, WavLM, Whisper's encoder), their mean over time.

    Args:
        name: of a model, or a folder.
        device: where it runs.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        try:
            from transformers import AutoFeatureExtractor, AutoModel
        except ImportError:
            raise UserError("speech encoders need transformers: pip install 'merc-kdc[extract]'") from None
        try:
            self._extractor: Any = AutoFeatureExtractor.from_pretrained(name)
            model: Any = AutoModel.from_pretrained(name)
        except Exception as error:  # a hub, a network, a folder and a format can fail in any way
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"audio encoder {name!r} cannot be loaded: {reason}") from None
        model = model.get_encoder() if model.config.is_encoder_decoder else model
        self._model, self._device = model.to(device).eval(), device

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(D,)`` of one utterance."""
        inputs = self._extractor(samples, sampling_rate=RATE, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            hidden = self._model(**inputs).last_hidden_state  # [1, T, D]
        row: NDArray[np.float32] = hidden.float().mean(1)[0].cpu().numpy()
        return row

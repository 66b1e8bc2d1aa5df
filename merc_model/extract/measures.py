"""Audio measures of programs with licences of their own, where they are installed: openSMILE and Praat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from merc_model.errors import UserError
from merc_model.extract.audio import PROSODY, RATE, prosody

Measure = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def egemaps(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(88,)`` functionals of eGeMAPS v02 (Eyben et al. 2016), by openSMILE."""
    try:
        import opensmile
    except ImportError:
        raise UserError(
            "--audio egemaps needs openSMILE, which is free for research and private use only: pip install opensmile"
        ) from None
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    samples = np.pad(samples, (0, max(0, RATE // 10 - len(samples))))
    row: NDArray[np.float32] = smile.process_signal(samples, RATE).to_numpy(np.float32)[0]
    return row


def praat(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(19,)`` measures of the voice, by Praat.

    Duration; pitch in Hz (mean, sd, least, most, share voiced); intensity in dB (mean, sd, least, most); mean and sd of
    harmonics-to-noise in dB; jitter and shimmer (local); mean and sd of the first two formants; pulses a second.
    Where nothing is voiced, what is said of voice is 0.
    """
    try:
        import parselmouth
        from parselmouth.praat import call
    except ImportError:
        raise UserError("--audio praat needs Praat, which is under the GPL 3: pip install praat-parselmouth") from None
    samples = np.pad(samples, (0, max(0, RATE // 8 - len(samples))))  # a window of 64 ms for 75 Hz fits
    sound = parselmouth.Sound(samples.astype(np.float64), RATE)
    pitch = sound.to_pitch().selected_array["frequency"]
    tones = pitch[pitch > 0]
    intensity = sound.to_intensity().values[0]
    ratio = sound.to_harmonicity().values[0]
    ratio = ratio[ratio > -200]  # Praat's mark of silence
    pulses = call(sound, "To PointProcess (periodic, cc)", 75, 600)
    limits = (0, 0, 0.0001, 0.02, 1.3)
    formants = sound.to_formant_burg()
    times = formants.ts()
    tracks = [np.array([formants.get_value_at_time(number, time) for time in times]) for number in (1, 2)]
    values = [sound.duration, *_four(tones), len(tones) / max(len(pitch), 1), *_four(intensity), *_four(ratio)[:2]]
    values += [call(pulses, "Get jitter (local)", *limits), call([sound, pulses], "Get shimmer (local)", *limits, 1.6)]
    for track in tracks:
        values += _four(track[np.isfinite(track)])[:2]
    values.append(call(pulses, "Get number of points") / sound.duration)
    return np.nan_to_num(np.array(values, np.float32))


MEASURES: dict[str, Measure] = {PROSODY: prosody, "egemaps": egemaps, "praat": praat}


def _four(track: NDArray[np.float64]) -> list[float]:
    """Mean, sd, least and most; zeros of nothing."""
    if not len(track):
        return [0.0] * 4
    return [float(track.mean()), float(track.std()), float(track.min()), float(track.max())]

"""Sound and frames of one utterance out of a recording, by PyAV; no more of it is held than the utterance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.errors import UserError

_BEFORE = 0.5  # seconds that are decoded before an utterance: AAC loses the first frame after a seek


class MediaError(Exception):
    """A recording that is missing, broken or lacks what is asked of it; the message says which."""


def waveform(path: Path, start: float, end: float | None, rate: int = 16_000) -> NDArray[np.float32]:
    """``(samples,)`` at ``rate`` Hz, one channel, between two times in seconds."""
    av, pieces, first = _av(), [], None
    with _opened(av, path) as container:
        if not container.streams.audio:
            raise MediaError("has no sound")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        try:
            _seek(container, stream, start)
            for frame in container.decode(stream):
                time = frame.time or 0.0
                if end is not None and time >= end:
                    break
                if time + frame.samples / frame.sample_rate <= start:
                    continue
                first = time if first is None else first
                pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)] if pieces else []
        except av.FFmpegError as error:
            raise MediaError(f"is broken: {error.strerror}") from None
    if first is None or not pieces:
        raise MediaError(f"has no sound after {start:g} s")
    whole = np.concatenate(pieces)
    skipped = round(max(start - first, 0) * rate)
    stop = None if end is None else skipped + round((end - max(start, first)) * rate)
    cut = whole[skipped:stop].astype(np.float32)
    if len(cut) < rate // 50:
        raise MediaError(f"has less than 20 ms of sound after {start:g} s")
    return cut


def frames(path: Path, start: float, end: float | None, count: int) -> list[NDArray[np.uint8]]:
    """Up to ``count`` pictures ``(height, width, 3)``, evenly spaced between two times in seconds."""
    av = _av()
    with _opened(av, path) as container:
        if not container.streams.video:
            raise MediaError("has no pictures")
        stream = container.streams.video[0]
        length = container.duration / av.time_base if container.duration else None
        stop = end if end is not None else length if length is not None else start + 1
        wanted = [start + (stop - start) * (number + 0.5) / count for number in range(count)]
        found: list[NDArray[np.uint8]] = []
        last: Any = None
        try:
            _seek(container, stream, start)
            for frame in container.decode(stream):
                time = frame.time or 0.0
                if time >= stop:
                    break
                if time >= start:
                    last = frame
                if time >= start and len(found) < count and time >= wanted[len(found)]:
                    found.append(frame.to_ndarray(format="rgb24"))
        except av.FFmpegError as error:
            raise MediaError(f"is broken: {error.strerror}") from None
        if not found and last is not None:  # a clip shorter than the distance of the pictures
            found.append(last.to_ndarray(format="rgb24"))
    if not found:
        raise MediaError(f"has no picture after {start:g} s")
    return found


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("recordings need PyAV: pip install 'merc-kdc[extract]'") from None
    return av


def _opened(av: Any, path: Path) -> Any:
    try:
        return av.open(str(path))
    except av.FFmpegError as error:
        raise MediaError("is not there" if not path.exists() else f"cannot be read: {error.strerror}") from None
    except OSError as error:
        raise MediaError(f"cannot be read: {error.strerror or error}") from None


def _seek(container: Any, stream: Any, start: float) -> None:
    before = max(start - _BEFORE, 0.0)
    if before > 0:
        container.seek(int(before / stream.time_base), stream=stream)  # the last key frame before

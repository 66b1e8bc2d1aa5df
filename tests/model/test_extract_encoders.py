"""Speech, picture and video encoders on made-up recordings; they have random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from merc_model.errors import UserError
from merc_model.extract.audio import SpeechEncoder, pieces
from merc_model.extract.cache import Cache
from merc_model.extract.features import extract
from merc_model.extract.media import MediaError, frames, waveform
from merc_model.extract.rows import Work
from merc_model.extract.settings import Settings
from merc_model.extract.speech import Recogniser
from merc_model.extract.table import Utterance
from merc_model.extract.visual import PictureEncoder, faces
from tests.model.recordings import film, picture_encoder, speech_encoder, text_encoder


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=int(16000 * seconds)).astype(np.float32) * 0.1


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "whisper"])
def test_speech_encoders(kind: str, tmp_path: Path) -> None:
    encoder = SpeechEncoder(str(speech_encoder(tmp_path / kind, kind)))
    assert encoder.rate == 16000
    row = encoder(noise(1))
    assert row.shape == (8,)
    assert row.dtype == np.float32
    np.testing.assert_array_equal(encoder(noise(1)), row)
    assert np.abs(encoder(noise(1, seed=1)) - row).max() > 1e-4
    assert np.isfinite(encoder(noise(0.02))).all()
    assert np.isfinite(encoder(noise(65))).all()


def test_silence_that_whisper_is_filled_up_with_is_not_counted(tmp_path: Path) -> None:
    encoder = SpeechEncoder(str(speech_encoder(tmp_path / "whisper", "whisper")))
    assert len(encoder._hidden(noise(2))) == 100
    assert len(encoder._hidden(noise(30))) == 1500


@pytest.mark.parametrize("kind", ["vit", "clip", "resnet", "videomae"])
def test_picture_encoders(kind: str, tmp_path: Path) -> None:
    encoder = PictureEncoder(str(picture_encoder(tmp_path / kind, kind)))
    pictures = [np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8) for seed in range(6)]
    row = encoder(pictures)
    assert row.shape == (8,)
    assert np.abs(encoder(pictures[::2]) - row).max() > 1e-4
    assert np.isfinite(encoder(pictures[:1])).all()


def test_sound_and_pictures_of_a_film(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        path = film(tmp_path / name)
        assert len(waveform(path, 0.5, 1.5)) == pytest.approx(16000, abs=20)
        assert len(waveform(path, 0.5, 1.5, 48000)) == pytest.approx(48000, abs=20)
        levels = [int(picture.mean()) for picture in frames(path, 1.0, 2.0, 5)]
        assert len(levels) == 5
        assert levels == sorted(levels)
        assert 105 < levels[0] < 130
        assert 185 < levels[-1] < 205
        assert len(frames(path, 1.0, 1.05, 5)) == 1
    silent = film(tmp_path / "silent.mp4", sound=False)
    with pytest.raises(MediaError, match="has no sound"):
        waveform(silent, 0.0, None)
    assert len(frames(silent, 0.0, None, 4)) == 4


def test_a_film_to_a_corpus_and_nothing_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4", seconds=3)
    rows = [
        Utterance(f"line {i}", "a", "A", "", "glad", media=path, start=start, end=start + 1.0)
        for i, start in enumerate((0.0, 1.0, 2.0, 9.0))
    ]
    settings = Settings(
        text=str(text_encoder(tmp_path / "text")),
        asr=str(speech_encoder(tmp_path / "asr", "ctc")),
        audio=str(speech_encoder(tmp_path / "audio", "wav2vec2")),
        visual=str(picture_encoder(tmp_path / "visual", "vit")),
    )
    lines: list[str] = []
    monkeypatch.setattr(Recogniser, "__call__", lambda self, samples: "hello you" if samples.any() else "")
    corpus = extract(rows, settings, Work(Cache(tmp_path / "cache"), warn=lines.append), name="x")
    assert corpus.dims == {"text": 8, "audio": 8, "visual": 8}
    for modality in corpus.dims:
        assert np.isnan(corpus.features[modality]).any(axis=1).tolist() == [False, False, False, True], modality
    assert corpus.transcript is not None
    assert corpus.transcript.tolist() == ["hello you"] * 3 + [""]
    assert [line.split(":")[0] for line in lines] == [f"{m} is missing" for m in ("text", "audio", "visual")]
    assert all("line 3" in line for line in lines)

    for kind in (SpeechEncoder, PictureEncoder, Recogniser):
        monkeypatch.setattr(kind, "__init__", lambda *_: pytest.fail("loaded an encoder"))
    again = extract(rows[:3], settings, Work(Cache(tmp_path / "cache")), name="x")
    np.testing.assert_array_equal(again.features["visual"], corpus.features["visual"][:3])
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        extract(rows[:3], replace(settings, frames=3), Work(Cache(tmp_path / "cache")), name="x")


def test_a_recogniser(tmp_path: Path) -> None:
    recogniser = Recogniser(str(speech_encoder(tmp_path / "asr", "ctc")))
    words = recogniser(noise(1))
    assert isinstance(words, str)
    assert words == recogniser(noise(1)) == " ".join(words.split())
    assert len(pieces(noise(65), 16000)) == 3
    assert isinstance(recogniser(noise(65)), str)
    with pytest.raises(UserError, match="cannot be loaded"):
        Recogniser(str(tmp_path / "none"))


def test_the_largest_face_is_seen(tmp_path: Path) -> None:
    skimage = pytest.importorskip("skimage")
    person = skimage.data.astronaut()
    cropped = faces([person, np.zeros_like(person)])
    assert len(cropped) == 1
    height, width = cropped[0].shape[:2]
    assert 90 < height < 200
    assert 90 < width < 200
    with pytest.raises(MediaError, match="shows no face"):
        faces([np.zeros((48, 64, 3), np.uint8)])

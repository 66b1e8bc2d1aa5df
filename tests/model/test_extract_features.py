"""Features out of made-up recordings, by a tiny encoder with random weights."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.extract import measures
from merc_model.extract.cache import Cache
from merc_model.extract.command import conversation
from merc_model.extract.features import extract
from merc_model.extract.media import MediaError, waveform
from merc_model.extract.rows import Work
from merc_model.extract.settings import Settings
from merc_model.extract.table import Utterance
from merc_model.extract.text import TextEncoder
from tests.model.command import SMALL, failure
from tests.model.recordings import text_encoder, tone


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder(tmp_path_factory.mktemp("encoders") / "text")


def test_text_does_not_depend_on_its_batch_and_context_changes_it(encoder: Path) -> None:
    text = TextEncoder(str(encoder))
    both = text.encode(["hello you", "no"], ["", ""])
    np.testing.assert_allclose(text.encode(["no"], [""]), both[1:], atol=1e-6)
    assert np.abs(text.encode(["no"], ["ann : hello"]) - both[1:]).max() > 1e-3
    long = text.encode(["no"], ["hello " * 2000])
    assert np.isfinite(long).all()
    for pooling in ("first", "last", "max"):
        assert TextEncoder(str(encoder), pooling).encode(["no", "hello you"], ["", ""]).shape == (2, 8)


def test_a_segment_of_a_recording(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tone(tmp_path / "a.wav", 200)
    assert len(waveform(path, 0.0, None)) == pytest.approx(32000, abs=100)
    part = waveform(path, 0.5, 1.25)
    assert len(part) == pytest.approx(12000, abs=100)
    with pytest.raises(MediaError, match="after 9 s"):
        waveform(path, 9.0, None)


def test_missing_and_broken_recordings_are_missing_rows_that_are_named(encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("librosa")
    (tmp_path / "broken.wav").write_bytes(b"nothing that sounds")
    media = [
        tone(tmp_path / "low.wav", 110),
        tone(tmp_path / "high.wav", 330),
        tmp_path / "broken.wav",
        tmp_path / "no",
    ]
    rows = [Utterance(f"line {i}", "a", "A", "hello" if i else "", "glad", media=m) for i, m in enumerate(media)]
    cache, lines = Cache(tmp_path / "cache"), []
    corpus = extract(rows, Settings(text=str(encoder)), Work(cache, warn=lines.append), name="x")
    assert corpus.dims == {"text": 8, "audio": 49}
    assert np.isnan(corpus.features["audio"]).any(axis=1).tolist() == [False, False, True, True]
    assert np.isnan(corpus.features["text"]).any(axis=1).tolist() == [True, False, False, False]
    assert corpus.features["audio"][1, 1] - corpus.features["audio"][0, 1] == pytest.approx(19.02, abs=0.5)
    assert [line.split(":")[1] for line in lines] == [" line 3", " line 2"]
    assert "is not there" in lines[0]
    again = extract(rows, Settings(text=str(encoder)), Work(cache), name="x")
    np.testing.assert_array_equal(again.features["audio"], corpus.features["audio"])
    cache.close()


def test_what_is_cached_is_not_made_again(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Utterance("", "a", "A", word, "glad") for word in ("hello", "you", "hello")]
    first = Cache(tmp_path / "cache")
    corpus = extract(rows, Settings(text=str(encoder)), Work(first), name="x")
    first.close()
    monkeypatch.setattr(TextEncoder, "__init__", lambda *_: pytest.fail("loaded an encoder"))
    second = Cache(tmp_path / "cache")
    again = extract(rows, Settings(text=str(encoder)), Work(second), name="x")
    second.close()
    assert again.fingerprint() == corpus.fingerprint()


def test_from_a_table_to_predictions(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out, run = tmp_path / "talks.csv", tmp_path / "talks.npz", tmp_path / "run"
    lines = [
        f"{d},{s},{w},{e},{'test' if d > 9 else 'train'}"
        for d in range(12)
        for s, w, e in (("Ann", "hello you", "glad"), ("Bob", "no", "cross"), ("Ann", "there", "glad"))
    ]
    table.write_text("\n".join(["dialogue,speaker,text,label,split", *lines]))
    assert main(["extract", str(table), "--out", str(out), "--text", str(encoder), "--text-context", "1"]) == 0
    corpus = Corpus.load(out)
    assert corpus.extraction is not None
    assert Settings.of(corpus.extraction).text_context == 1
    assert main(["train", "--data", str(out), "--out", str(run), *SMALL]) == 0
    talk = tmp_path / "talk.csv"
    talk.write_text("dialogue,speaker,text\nx,Ann,hello\nx,Bob,no no\n")
    answer = tmp_path / "answer.csv"
    assert main(["predict", str(run), str(talk), "--out", str(answer)]) == 0
    assert len(answer.read_text().splitlines()) == 3
    page = tmp_path / "talk.html"
    assert main(["predict", str(run), str(talk), "--out", str(page)]) == 0
    assert "no no" in page.read_text("utf-8")
    assert "Bob" in page.read_text("utf-8")
    capsys.readouterr()
    other = tmp_path / "other.npz"
    features = corpus.features["text"][:3]
    np.savez(other, text=features, extraction=np.array(Settings().json()))
    expected = f"text sentence-transformers/all-MiniLM-L6-v2, not {encoder}"
    assert expected in failure(["predict", str(run), str(other)], capsys)
    replace(corpus, extraction=Settings().json()).save(tmp_path / "all.npz")
    assert expected in failure(["evaluate", str(run), "--data", str(tmp_path / "all.npz")], capsys)

    moved = shutil.copytree(encoder, tmp_path / "moved")  # the same encoder in another place
    np.savez(
        other, text=features, extraction=np.array(Settings(text=str(moved), text_context=1).with_contents().json())
    )
    assert main(["predict", str(run), str(other), "--out", str(tmp_path / "b.csv")]) == 0
    talk.write_text(f"dialogue,speaker,text,media\nx,Ann,hello,{page}\n")  # an upload may name any file
    assert conversation(talk, corpus.extraction, ["text"], ["cross", "glad"], "cpu", recordings=False).media is None
    own = Settings.of(corpus.extraction)
    changed = replace(own, contents={"text": "of before"}).json()
    with pytest.raises(UserError, match=f"the text encoder {encoder} with other contents than they have now"):
        conversation(talk, changed, ["text"], ["cross", "glad"], "cpu")


def test_an_encoder_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "t.csv").write_text("dialogue,text,label\na,hi,glad\n")
    (tmp_path / "empty").mkdir()
    arguments = [
        "extract",
        str(tmp_path / "t.csv"),
        "--out",
        str(tmp_path / "c.npz"),
        "--text",
        str(tmp_path / "empty"),
    ]
    assert "cannot be loaded" in failure(arguments, capsys)


def test_a_killed_extraction_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    pytest.importorskip("librosa")
    lines = [f"a,A,{tone(tmp_path / f'{i}.wav', 100 + i, seconds=3).name},glad" for i in range(40)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["dialogue,speaker,media,label", *lines]))
    command = ["extract", str(table), "--out", str(tmp_path / "c.npz"), "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "merc_model", *command])
    while kept(tmp_path / "c.cache") < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = kept(tmp_path / "c.cache")
    assert 3 <= before < 40
    assert not (tmp_path / "c.npz").exists()
    made = []
    measure = measures.MEASURES["prosody"]
    monkeypatch.setitem(measures.MEASURES, "prosody", lambda samples: made.append(1) or measure(samples))
    assert main(command) == 0
    assert len(made) == 40 - before
    assert Corpus.load(tmp_path / "c.npz").dims == {"audio": 49}


def kept(cache: Path) -> int:
    if not cache.exists():
        return 0
    connection = sqlite3.connect(cache, timeout=60)
    try:
        count: int = connection.execute("SELECT count(*) FROM features").fetchone()[0]
    except sqlite3.OperationalError:  # the table is not made yet
        count = 0
    connection.close()
    return count


def test_workers_make_the_same_features(tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("librosa")
    paths = [tone(tmp_path / f"{i}.wav", 100 + 10 * i, seconds=1) for i in range(20)]
    paths[7].write_bytes(b"broken")
    rows = [Utterance(f"line {i}", "a", "A", "", "glad", media=path) for i, path in enumerate(paths)]
    made = []
    for workers in (1, 2):
        lines: list[str] = []
        work = Work(Cache(Path(":memory:")), workers, warn=lines.append)
        made.append(extract(rows, Settings(), work, name="x"))
        assert len(lines) == 1
        assert "line 7" in lines[0]
    assert made[0].fingerprint() == made[1].fingerprint()


@pytest.mark.parametrize(("name", "package", "width"), [("egemaps", "opensmile", 88), ("praat", "parselmouth", 19)])
def test_measures_of_other_programs(name: str, package: str, width: int) -> None:
    pytest.importorskip(package)
    measure, seconds = measures.MEASURES[name], np.arange(16000) / 16000
    low, high = (measure((0.3 * np.sin(2 * np.pi * hertz * seconds)).astype(np.float32)) for hertz in (120, 240))
    assert low.shape == high.shape == (width,)
    assert low.dtype == np.float32
    pitch = {"egemaps": 0, "praat": 1}[name]
    assert high[pitch] - low[pitch] == pytest.approx({"egemaps": 12, "praat": 120}[name], rel=0.02)
    for samples in (np.zeros(16000, np.float32), np.zeros(400, np.float32)):
        assert np.isfinite(measure(samples)).all()


def test_licences_are_said_where_a_program_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package, words in (("egemaps", "opensmile", "research"), ("praat", "parselmouth", "GPL 3")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=words):
            measures.MEASURES[name](np.zeros(16000, np.float32))

"""What a corpus keeps of its recordings: where they lie and when things are said; pages of its conversations."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.data.corpus import Corpus
from merc_model.data.spoken import Spoken
from merc_model.errors import UserError
from merc_model.extract import measures
from tests.model.command import SMALL, failure
from tests.model.recordings import tone
from tests.model.small import small_corpus


def recorded(folder: Path, **changes: Any) -> Corpus:
    corpus = small_corpus()
    length = len(corpus.labels)
    start = np.arange(length, dtype=np.float64)
    media = np.array([str(folder / "calls" / "a b.wav")] * (length - 1) + [""])
    return replace(corpus, **{"media": media, "start": start, "end": start + 0.5, **changes})


def test_recordings_are_found_from_where_the_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").mkdir()
    corpus = recorded(Path())
    corpus.save("sets/c.npz")
    assert np.load("sets/c.npz")["media"][[0, -1]].tolist() == ["../calls/a b.wav", ""]
    again = Corpus.load("sets/c.npz")
    assert again.media is not None
    assert again.start is not None
    assert Path(again.media[0]).resolve() == tmp_path / "calls" / "a b.wav"
    assert again.fingerprint() == corpus.fingerprint() == small_corpus().fingerprint()
    again.save("moved.npz")
    assert np.load("moved.npz")["media"][0] == "calls/a b.wav"
    part = again.only(np.array([1, 2]))
    assert part.start is not None
    np.testing.assert_array_equal(part.start, again.start[again.rows(np.array([1, 2]))])


def test_a_corpus_without_recordings_loads(tmp_path: Path) -> None:
    small_corpus().save(tmp_path / "c.npz")
    corpus = Corpus.load(tmp_path / "c.npz")
    assert corpus.media is corpus.start is corpus.end is None
    spoken = Spoken.of(corpus)
    assert set(spoken.media) == {None}
    assert np.isnan(spoken.starts).all()
    assert set(spoken.words) == {""}
    assert set(spoken.speakers) == {"speaker 0", "speaker 1", "speaker 2"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"media": np.arange(3)}, "media: expected strings"),
        ({"media": np.array(["a.wav"])}, "media: expected .*one for each utterance, got"),
        ({"start": np.array([1.0])}, "start: expected .*one for each utterance, got"),
        ({"end": ["late"]}, "end: expected numbers"),
        ({"end": 0.0 * small_corpus().labels}, "expected 0 <= start < end, got 0 and 0 at dialogue 'd0', utterance 1"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recorded(Path(), **changes)


def test_a_page_of_one_conversation_of_a_corpus(finished: Path, tmp_path: Path, capsys: Any) -> None:
    path, out = tmp_path / "sets" / "c.npz", tmp_path / "pages" / "talk.html"
    path.parent.mkdir()
    out.parent.mkdir()
    corpus = recorded(tmp_path)
    corpus.save(path)
    command = ["predict", str(finished), str(path), "--out", str(out)]
    assert "holds 15 dialogues; say which: --dialogue ID" in failure(command, capsys)
    assert "no dialogue 'x'; expected one of 15, such as 'd0'" in failure([*command, "--dialogue", "x"], capsys)
    assert main([*command, "--dialogue", "d3"]) == 0
    text = out.read_text()
    rows = corpus.rows(np.array([3]))
    assert 'data-source0="../calls/a%20b.wav"' in text
    assert [float(start) for start in re.findall(r'data-start="([\d.]+)"', text)] == rows.tolist()

    corpus.only(np.array([3])).save(tmp_path / "one.npz")
    answers = []
    for more in ([str(path), "--dialogue", "d3"], [str(tmp_path / "one.npz")]):
        answers.append(tmp_path / f"{len(answers)}.csv")
        assert main(["predict", str(finished), *more, "--out", str(answers[-1])]) == 0
    assert answers[0].read_text() == answers[1].read_text()


def test_extracted_recordings_play_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    monkeypatch.setitem(measures.MEASURES, "prosody", lambda samples: samples[100:104])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talks").mkdir()
    lines = []
    for name, split in (("a", "train"), ("b", "train"), ("c", "train"), ("d", "test")):
        tone(tmp_path / "talks" / f"{name}.wav", 200)
        for start, label in ((0, "glad"), (0.5, "cross"), (1, "glad")):
            lines.append(f"{name},Ann,so,{label},{split},{name}.wav,{start},{start + 0.4}")
    table = Path("talks/t.csv")
    table.write_text("\n".join(["dialogue,speaker,text,label,split,media,start,end", *lines]))
    assert main(["extract", str(table), "--out", "c.npz", "--text", "none", "--workers", "1"]) == 0
    corpus = Corpus.load("c.npz")
    spoken = Spoken.of(corpus)
    assert spoken.media[-1] == Path("talks/d.wav")
    assert spoken.starts[-3:].tolist() == [0, 0.5, 1]
    assert spoken.ends[-3:].tolist() == pytest.approx([0.4, 0.9, 1.4])

    features = {"text": np.random.default_rng(0).normal(size=(12, 4)), **corpus.features}
    replace(corpus, features=features, extraction=None).save("both.npz")  # training needs text
    assert main(["train", "--data", "both.npz", *SMALL, "--out", "run"]) == 0
    moved = Path("elsewhere")
    moved.mkdir()
    for name in ("both.npz", "talks"):
        shutil.move(name, moved)
    assert main(["predict", "run", "elsewhere/both.npz", "--dialogue", "d", "--out", "talk.html"]) == 0
    text = Path("talk.html").read_text()
    assert 'data-source0="elsewhere/talks/d.wav"' in text
    assert 'data-seconds="1.400"' in text
    table = moved / "talks" / "t.csv"
    assert "was not made by merc extract" in failure(["predict", "run", str(table)], capsys)

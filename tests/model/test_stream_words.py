"""merc predict --stream of words and recordings: features are made of each line as they were of the corpus."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.checkpoint import load
from merc_model.cli import main
from merc_model.extract import measures
from merc_model.extract.live import Live
from merc_model.extract.settings import Settings
from merc_model.extract.table import Utterance
from merc_model.stream import answers
from tests.model.command import SMALL, failure
from tests.model.recordings import text_encoder, tone

TALK = (("Ann", "hello, you", "a.wav"), ("Bob", "no", ""), ("Ann", "", "b.wav"), ("Ann", "there", "b.wav"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with a causal run on words and recordings, and two recordings."""
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("live")
    encoder = text_encoder(folder / "encoder")
    for name, hertz in (("a.wav", 110), ("b.wav", 330)):
        tone(folder / name, hertz)
    lines = [
        f"{d},{s},{w},{e},{'test' if d > 5 else 'train'},{m}"
        for d in range(8)
        for s, w, e, m in (("Ann", "hello you", "glad", "a.wav"), ("Bob", "no", "cross", "b.wav"))
    ]
    (folder / "t.csv").write_text("\n".join(["dialogue,speaker,text,label,split,media", *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measures.MEASURES, "prosody", lambda samples: samples[100:104])
        extract = ["extract", str(folder / "t.csv"), "--out", str(folder / "t.npz"), "--workers", "1"]
        assert main([*extract, "--text", str(encoder), "--text-context", "2"]) == 0
        train = ["train", "--data", str(folder / "t.npz"), *SMALL, "causal=true"]
        assert main([*train, "--out", str(folder / "run")]) == 0
        yield folder


def table(rows: Any, *names: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([names, *rows])
    return buffer.getvalue()


def streamed(folder: Path, name: str, text: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    (folder / name).write_text(text)
    capsys.readouterr()
    assert main(["predict", str(folder / "run"), str(folder / name), "--stream"]) == code
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err.splitlines()


def test_words_and_recordings_are_answered_as_the_whole_table_is(run: Path, capsys: Any) -> None:
    names = ("speaker", "text", "media")
    (run / "whole.csv").write_text(table([("d", *row) for row in TALK], "dialogue", *names))
    assert main(["predict", str(run / "run"), str(run / "whole.csv"), "--out", str(run / "whole.json")]) == 0
    whole = json.loads((run / "whole.json").read_text())
    lines = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in TALK)
    tabs = "\n".join("\t".join(row) for row in (names, *TALK))
    for kind, text in (
        ("csv", table(TALK, *names)),
        ("jsonl", lines),
        ("tsv", tabs),
        ("csv", "\ufeff" + table(TALK, *names)),
    ):
        rows, err = streamed(run, f"talk.{kind}", text, capsys)
        assert not err
        head = 0 if kind == "jsonl" else 1
        assert [row["line"] for row in rows] == [number + head for number in (1, 2, 3, 4)]
        for row, expected in zip(rows, whole, strict=True):
            assert row["speaker"] == expected["speaker"]
            assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_given_features_and_words_may_stand_side_by_side(run: Path, capsys: Any) -> None:
    values = [{"text": "no", "audio": [0.1, 0.2, 0.1, 0.0]}, {"text": [0.0] * 8, "media": "a.wav"}, {"text": None}]
    rows, err = streamed(run, "mixed.jsonl", "\n".join(map(json.dumps, values)), capsys)
    assert [row["utterance"] for row in rows] == [1, 2, 3]
    assert not err


def test_what_is_wrong_is_told_line_by_line(run: Path, capsys: Any) -> None:
    text = table(
        [("Ann", "no", "nowhere.wav", ""), ("Bob", "no", "a.wav", "soon")], "speaker", "text", "media", "start"
    )
    rows, err = streamed(run, "bad.csv", text + 'Ann,"no\nAnn,no\nAnn,there,,\n', capsys, code=2)
    assert [row["line"] for row in rows] == [2, 6]
    assert "line 2: audio is missing" in err[0]
    assert "nowhere.wav is not there" in err[0]
    assert err[1] == "line 3: this utterance: start: expected seconds or hours:minutes:seconds, got 'soon'; left out"
    assert err[2] == "line 4: not a row of a table: unexpected end of data; left out"
    assert err[3] == "line 5: expected 4 cells, got 2; left out"
    assert err[4].endswith("3 of 6 lines could not be read; the others were answered")
    _, err = streamed(run, "bad.csv", "who,what\nAnn,no\n", capsys, code=2)
    assert err[0] == "line 1: not valid JSON, nor names of columns with text or media among them; left out"
    _, err = streamed(run, "bad.csv", "text,text\n", capsys, code=2)
    assert err[0] == "line 1: two columns have the same name: text, text; left out"


def test_words_for_a_run_that_was_not_extracted_are_one_line(
    finished: Path, corpus_path: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    assert main(["train", "--data", str(corpus_path), *SMALL, "causal=true", "--out", str(folder)]) == 0
    for name, text in (
        ("t.csv", "speaker,text\nAnn,hello\nBob,no\n"),
        ("t.jsonl", '{"text": "hello"}\n{"text": "no"}\n'),
    ):
        (tmp_path / name).write_text(text)
        capsys.readouterr()
        line = failure(["predict", str(folder), str(tmp_path / name), "--stream"], capsys)
        assert "words or a recording, but the run's corpus was not made by merc extract" in line
    line = failure(["predict", str(folder), "--stream", "--dialogue", "d0"], capsys)
    assert "--dialogue: --stream answers every line" in line


def test_an_encoder_is_loaded_once_and_what_it_is_not_needed_for_does_not_load_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merc_model.extract import live

    made = []
    encoder = live.TextEncoder
    monkeypatch.setattr(live, "TextEncoder", lambda *options: made.append(options) or encoder(*options))
    model = load(run / "run")
    lines = [b'{"audio": [0, 0, 0, 1]}', b'{"text": "no"}', b'{"text": "hello"}']
    settings = Settings(text=str(run / "encoder"))
    counts = [len(made) for _ in answers(model, lines, print, live=lambda: Live(settings))]
    assert counts == [0, 1, 1]


def test_a_run_with_an_encoder_of_its_own_takes_words_alone(run: Path) -> None:
    told: list[str] = []
    lines = [b'{"text": "no"}', b'{"text": [0, 0, 0, 0, 0, 0, 0, 0]}', b'{"text": "hello"}']
    settings = Settings(text=str(run / "encoder"), text_speakers=True)
    rows = answers(load(run / "run"), lines, told.append, live=lambda: Live(settings), words_alone=True)
    assert [row["line"] for row in (next(rows), next(rows))] == [1, 3]
    assert told == ["line 2: text: expected words: the run reads them with an encoder of its own; left out"]


def test_what_is_heard_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from merc_model.extract import reading

    monkeypatch.setattr(reading, "Recogniser", lambda *_: Ears())
    live = Live(Settings(text=str(run / "encoder"), audio=None, asr="ears"))
    silent = Utterance("", "d", "Ann", "", media=run / "a.wav")
    live.load(silent)
    heard, rows = live.features([], silent, print)
    assert heard.text == "hello"
    said = Utterance("", "d", "Ann", "hello")
    np.testing.assert_array_equal(rows["text"], live.features([], said, print)[1]["text"])


class Ears:
    rate = 16_000

    def __call__(self, samples: Any) -> str:
        return "hello"

"""merc predict --stream: an answer for each line, when it comes, as the causal model gives it offline."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.checkpoint import load
from merc_model.cli import main
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, predict
from merc_model.stream import answers
from tests.model.command import SMALL, failure
from tests.model.small import LABEL_NAMES

WRONG = [
    ('{"text": ', "not valid JSON"),
    ("[1, 2]", "expected an object"),
    ('{"txet": [1]}', "no key 'txet'; there are: dialogue, speaker, text, audio, visual"),
    ('{"text": 7}', "text: expected a list of numbers or null, got '7'"),
    ('{"audio": "hello there"}', "audio: expected a list of numbers or null, got 'hello there'"),
    ('{"text": [1, 2]}', "text: expected 8 numbers, got 2"),
    ('{"text": [1, 2, 3, 4, 5, 6, 7, "8"]}', "this utterance: text: expected numbers"),
    ('{"text": [1, 2, 3, 4, 5, 6, 7, 1e30]}', "1e+30 in column 7"),
    ('{"speaker": ["Ann"], "text": null}', "speaker: expected a name or number"),
    ("\xff", "not valid JSON"),
]


@pytest.fixture(scope="module")
def causal(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "causal"
    assert main(["train", "--data", str(corpus_path), *SMALL, "causal=true", "--out", str(folder)]) == 0
    return folder


def lines(corpus: Corpus, dialogues: list[int], **more: Any) -> list[str]:
    said = []
    for row in corpus.rows(np.array(dialogues)):
        features = {m: None if np.isnan(rows[row]).any() else rows[row].tolist() for m, rows in corpus.features.items()}
        said.append(json.dumps({"speaker": f"S{corpus.speakers[row]}", **features, **more}))
    return said


def answered(folder: Path, said: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    complaints: list[str] = []
    rows = []
    try:
        for row in answers(load(folder), (line.encode("latin1") for line in said), complaints.append):
            rows.append(row)
    except UserError as error:
        complaints.append(str(error))
    return rows, complaints


def probabilities(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[row["probabilities"][name] for name in LABEL_NAMES] for row in rows])


def test_the_answers_are_those_of_the_whole_conversation(causal: Path, corpus_path: Path) -> None:
    corpus = Corpus.load(corpus_path)
    for dialogue in (0, 7, 14):
        rows, complaints = answered(causal, lines(corpus, [dialogue]))
        assert not complaints
        whole = predict(load(causal), corpus, np.array([dialogue])).probabilities[FUSED]
        np.testing.assert_allclose(probabilities(rows), whole, atol=1e-5)
        assert [row["utterance"] for row in rows] == list(range(1, len(whole) + 1))
        assert all(row["emotion"] == max(row["probabilities"], key=row["probabilities"].get) for row in rows)


def test_another_dialogue_begins_anew(causal: Path, corpus_path: Path) -> None:
    corpus = Corpus.load(corpus_path)
    first, second = lines(corpus, [0], dialogue="a"), lines(corpus, [1], dialogue=7)
    rows, _ = answered(causal, [*first, *second])
    alone, _ = answered(causal, second)
    assert probabilities(rows[len(first) :]).tolist() == probabilities(alone).tolist()
    assert [row["dialogue"] for row in rows] == ["a"] * len(first) + ["7"] * len(second)
    assert rows[len(first)]["utterance"] == 1


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_a_broken_line_is_as_if_never_said(causal: Path, corpus_path: Path, wrong: str, said: str) -> None:
    good = lines(Corpus.load(corpus_path), [0])
    rows, complaints = answered(causal, [*good[:2], wrong, "", *good[2:]])
    expected, _ = answered(causal, good)
    assert probabilities(rows).tolist() == probabilities(expected).tolist()
    assert [row["line"] for row in rows] == [1, 2, *range(5, len(good) + 3)]
    assert len(complaints) == 2
    assert complaints[0].startswith("line 3: ")
    assert said in complaints[0]
    assert "\n" not in complaints[0]
    assert complaints[1] == f"1 of {len(good) + 2} lines could not be read; the others were answered"


def test_nothing_known_yet(causal: Path) -> None:
    rows, complaints = answered(causal, ['{"speaker": "Ann"}', json.dumps({"audio": [0.0] * 5}), "{}"])
    assert [row["line"] for row in rows] == [2, 3]
    assert complaints[0].startswith("line 1: nothing is known of any utterance yet")


def test_a_run_that_looks_ahead_is_refused(finished: Path, causal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(["predict", str(finished), "--stream"], capsys)
    assert "not causal" in line
    assert "--set causal=true" in line
    assert "standard output" in failure(["predict", str(causal), "--stream", "--out", "a.csv"], capsys)
    assert "CONVERSATION is missing" in failure(["predict", str(causal)], capsys)
    assert "cannot be read" in failure(["predict", str(causal), "none.jsonl", "--stream"], capsys)


def test_from_a_file(causal: Path, corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(Corpus.load(corpus_path), [0])
    (tmp_path / "talk.jsonl").write_text("\n".join([*said, "{"]))
    assert main(["predict", str(causal), str(tmp_path / "talk.jsonl"), "--stream"]) == 2
    out, err = capsys.readouterr()
    assert [json.loads(line)["line"] for line in out.splitlines()] == list(range(1, len(said) + 1))
    assert err.splitlines()[0] == f"line {len(said) + 1}: not valid JSON; left out"


def test_from_the_standard_input_each_line_is_answered_before_the_next(causal: Path, corpus_path: Path) -> None:
    command = [sys.executable, "-m", "merc_model", "predict", str(causal), "--stream"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)) as process:
        assert isinstance(process.stdin, io.BufferedWriter)
        assert isinstance(process.stdout, io.BufferedReader)
        for number, line in enumerate(lines(Corpus.load(corpus_path), [0]), start=1):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["line"] == number
        process.stdin.close()
        assert process.wait() == 0


def test_lines_are_not_read_ahead(causal: Path, corpus_path: Path) -> None:
    read = []

    def come() -> Iterator[bytes]:
        for line in lines(Corpus.load(corpus_path), [0]):
            read.append(line)
            yield line.encode()

    for number, _ in enumerate(answers(load(causal), come(), print), start=1):
        assert len(read) == number

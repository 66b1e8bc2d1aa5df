"""A predictor saved to a folder with its card, and read back without a network."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merc_model.card import card
from merc_model.checkpoint import load
from merc_model.cli import main
from merc_model.config import Config
from merc_model.data.corpus import Corpus
from merc_model.evaluation import FUSED, predict
from tests.model.command import conversation


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.mark.usefixtures("offline")
def test_saved_and_read_back_it_answers_the_same(
    finished: Path,
    corpus_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from merc_model.pretrained import PretrainedPredictor

    folder, again = tmp_path / "shared", tmp_path / "again"
    assert main(["export", str(finished), "--to", "hub", "--out", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
    ]
    assert str(corpus_path.parent) not in (folder / "config.json").read_text()
    PretrainedPredictor.from_pretrained(folder).save_pretrained(again)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()

    corpus = Corpus.load(corpus_path)
    expected = predict(load(finished), corpus, corpus.dialogues("test")).probabilities[FUSED]
    predictor = PretrainedPredictor.from_pretrained(again)
    assert not predictor.training
    np.testing.assert_array_equal(
        predict(predictor.model, corpus, corpus.dialogues("test")).probabilities[FUSED], expected
    )
    rows = corpus.rows(corpus.dialogues("test")[:1])
    features = {modality: torch.from_numpy(values[rows])[None] for modality, values in corpus.features.items()}
    with torch.inference_mode():
        probabilities = predictor(features, torch.from_numpy(corpus.speakers[rows])[None], torch.ones(1, len(rows)) > 0)
    np.testing.assert_allclose(probabilities[0], expected[: len(rows)], atol=1e-5)

    monkeypatch.chdir(tmp_path)  # pictures are drawn there
    conversation(tmp_path / "talk")
    capsys.readouterr()
    answers = []
    for run in (finished, folder):  # the command line reads the folder as it is
        assert main(["predict", str(run), str(tmp_path / "talk.json")]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]

    facts = hub.ModelCard.load(folder / "README.md").data
    metrics = json.loads((finished / "metrics.json").read_text())
    measured = {result.metric_type: result.metric_value for result in facts.eval_results}
    assert measured["weighted_f1"] == metrics["test"]["weighted_f1"]
    assert facts.library_name == "merc-kdc"


def test_from_pretrained_takes_no_unknown_argument(finished: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from merc_model.pretrained import PretrainedPredictor

    with pytest.raises(TypeError, match="no argument strict"):
        PretrainedPredictor.from_pretrained(finished, strict=True)


def run(**settings: Any) -> dict[str, Any]:
    corpus = {
        "name": "talks",
        "source": "talks.npz",
        "sha256": "ab12",
        "dims": {"text": 8, "audio": 5},
        "dialogues": {"train": 9, "valid": 0, "test": 3},
        "utterances": {"train": 80, "valid": 0, "test": 20},
    }
    config = dataclasses.asdict(Config().changed(settings))
    return {"environment": {"merc-kdc": "1.2.3"}, "config": config, "seed": 4, "label_names": ["a|b", "c"]} | {
        "corpus": corpus
    }


FIGURES = {
    **dict.fromkeys(("weighted_f1", "macro_f1", "accuracy", "uar"), 0.5),
    "f1": {"a|b": 0.75, "c": 0.25},
    "utterances": 100,
}


def test_the_card_tells_of_this_run() -> None:
    metrics = {"test": FIGURES, "valid": {}, "heads": {"audio": {"test": FIGURES}}}
    text = card(run(causal=True, epochs=3, memory=False), metrics)
    for line in (
        "# Emotions in conversations, learnt from talks",
        "| text | 8 |",
        "| train | 9 | 80 |",
        "| a\\|b | 0.7500 |",
        "accuracy ± 0.098 is about its 95 % interval",
        "| audio | 0.5000 |",
        "| `epochs` | 3 |",
        "| `causal` | True |",
        "It errs most on c (F1 0.25) and a|b (F1 0.75).",
        "judged by what came before it alone",
    ):
        assert line in text
    assert "made-up" not in text
    assert "labelled training utterances" not in text


def test_the_card_warns() -> None:
    embedded = run(select_on="test")
    embedded["corpus"]["source"] = None
    text = card(embedded, {"test": FIGURES, "valid": {}, "heads": {}})
    assert "made-up data" in text
    assert "too good" in text
    assert "share them only where" in text
    assert "The figures are of the validation set" in card(run(), {"test": {}, "valid": FIGURES, "heads": {}})
    assert "Not measured" in card(run(), {"test": {}, "valid": {}, "heads": {}})


def test_the_lines_of_the_card_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    assert main(["export", str(finished), "--to", "hub", "--out", str(tmp_path / "shared")]) == 0
    monkeypatch.chdir(tmp_path / "shared")
    lines = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(compile(lines, "README.md", "exec"), {})

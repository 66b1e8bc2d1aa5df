"""A tiny text encoder, of random weights, fine-tuned on words that tell the emotion."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model import finetune
from merc_model.checkpoint import Record, RunFolder
from merc_model.cli import main
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.extract.settings import Settings
from merc_model.run import train
from tests.model.command import SMALL, failure
from tests.model.recordings import text_encoder
from tests.model.small import small_config, small_corpus

WORDS = ("hello", "you", "no")  # of each class
TUNING = {"finetune_text": True, "finetune_context": 1, "finetune_epochs": 2, "finetune_learning_rate": 0.01}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return text_encoder(tmp_path / "tiny")


def spoken(encoder: Path | None, **changes: Any) -> Corpus:
    """The small corpus with words that tell the class, and text features that tell nothing."""
    corpus = small_corpus(("text", "audio"))
    corpus.features["text"][:] = np.random.default_rng(1).normal(size=corpus.features["text"].shape)
    words = np.array([WORDS[label] for label in corpus.labels])
    words[5] = ""
    names = np.array(["ann", "bob", "there"])[corpus.speakers]
    settings = None if encoder is None else Settings(text=str(encoder), audio=None).json()
    return replace(corpus, **{"transcript": words, "speaker_names": names, "extraction": settings, **changes})


def tuned(folder: Path, corpus: Corpus, *, resume: bool = False, **settings: Any) -> dict[str, Any]:
    record = Record.of(small_config(**{**TUNING, **settings}), 0, corpus, None)
    return train(RunFolder(folder), record, corpus, finetune.torch.device("cpu"), resume)


def weights(folder: Path) -> dict[str, Any]:
    return finetune.TextEncoder(str(folder)).model.state_dict()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_words_are_learnt_from(encoder: Path, tmp_path: Path) -> None:
    corpus = spoken(encoder)
    metrics = tuned(tmp_path / "run", corpus, finetune_epochs=20, finetune_batch=4, epochs=20, learning_rate=0.01)
    assert metrics["heads"]["text"]["test"]["accuracy"] > 0.9
    before, after = weights(encoder), weights(tmp_path / "run" / "encoder")
    assert any((before[name] != after[name]).any() for name in before)
    assert not (tmp_path / "run" / "finetune.pt").exists()
    folder = RunFolder(tmp_path / "run")
    rows = finetune.retold(folder, folder.record(), corpus, finetune.torch.device("cpu")).features["text"]
    assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == [5]


def test_labels_of_validation_and_test_are_not_seen(encoder: Path, tmp_path: Path) -> None:
    corpus = spoken(encoder)
    others = corpus.rows(np.flatnonzero(corpus.split != "train"))
    labels = corpus.labels.copy()
    labels[others] = (labels[others] + 1) % 3
    tuned(tmp_path / "one", corpus)
    tuned(tmp_path / "two", replace(corpus, labels=labels))
    one, two = (weights(tmp_path / name / "encoder") for name in ("one", "two"))
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
def test_adapters_and_checkpointing(encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tuned(tmp_path / "run", spoken(encoder), finetune_lora=2, finetune_checkpointing=True)
    before, after = weights(encoder), weights(tmp_path / "run" / "encoder")
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed
    assert all("dense" in name or "query" in name or "key" in name or "value" in name for name in changed)


def test_a_run_that_was_killed_ends_as_one_that_was_not(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = spoken(encoder)
    whole = tuned(tmp_path / "whole", corpus)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "_batches", killed_at(1, finetune._batches))
        with pytest.raises(KeyboardInterrupt):
            tuned(tmp_path / "run", corpus)
    assert (tmp_path / "run" / "finetune.pt").exists()
    assert not (tmp_path / "run" / "encoder").exists()
    with monkeypatch.context() as patch:
        patch.setattr(finetune.TextEncoder, "encode", killed_at(0, None))
        with pytest.raises(KeyboardInterrupt):
            tuned(tmp_path / "run", corpus, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "_train", lambda *_: pytest.fail("fine-tuned twice"))
        resumed = tuned(tmp_path / "run", corpus, resume=True)
        assert resumed["test"] == whole["test"]
        assert tuned(tmp_path / "run", corpus, resume=True) == resumed
    one, two = (weights(tmp_path / name / "encoder") for name in ("whole", "run"))
    assert all((one[name] == two[name]).all() for name in one)


def killed_at(call: int, function: Any) -> Any:
    calls = itertools.count()

    def kill(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return kill


def test_the_command_line(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "talks.npz", tmp_path / "run"
    spoken(None).save(data)
    settings = [
        *SMALL,
        *(f"{key}={str(value).lower()}" for key, value in TUNING.items()),
        f"finetune_encoder={encoder}",
    ]
    command = ["train", "--data", str(data), *settings]
    assert main([*command, "--out", str(run)]) == 0
    trained = json.loads((run / "metrics.json").read_text())
    run = run.rename(tmp_path / "moved")
    shutil.rmtree(encoder)
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert f"{trained['test']['weighted_f1']:.4f}" in capsys.readouterr().out

    corpus = Corpus.load(data)
    dialogue = corpus.dialogues("test")
    rows = corpus.rows(dialogue[:1])
    assert corpus.transcript is not None
    assert corpus.speaker_names is not None
    lines = [f"d,{name},{word}" for name, word in zip(corpus.speaker_names[rows], corpus.transcript[rows], strict=True)]
    (tmp_path / "talk.csv").write_text("\n".join(["dialogue,speaker,text", *lines]))
    values = {"text": [[0.0] * 3] * len(rows), "speakers": corpus.speaker_names[rows].tolist()}
    (tmp_path / "talk.json").write_text(json.dumps(values | {"transcript": corpus.transcript[rows].tolist()}))
    for kind in ("csv", "json"):
        arguments = ["predict", str(run), str(tmp_path / f"talk.{kind}"), "--out", str(tmp_path / f"by-{kind}.csv")]
        assert main(arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "by-csv.csv").read_text() == (tmp_path / "by-json.csv").read_text()

    from merc_model.pretrained import PretrainedPredictor

    shared, again = tmp_path / "shared", tmp_path / "again"
    assert main(["export", str(run), "--to", "hub", "--out", str(shared)]) == 0
    PretrainedPredictor.from_pretrained(shared).save_pretrained(again)
    PretrainedPredictor.from_pretrained(again).save_pretrained(again)
    for folder in (shared, again):
        assert files(folder / "encoder") == files(run / "encoder")
    shutil.rmtree(shared)
    out = tmp_path / "shared.csv"
    assert main(["predict", str(again), str(tmp_path / "talk.csv"), "--out", str(out)]) == 0
    assert out.read_text() == (tmp_path / "by-csv.csv").read_text()

    (tmp_path / "talk.json").write_text(json.dumps(values))
    capsys.readouterr()
    line = failure(["predict", str(run), str(tmp_path / "talk.json")], capsys)
    assert "has no transcript, and the run reads text with an encoder of its own" in line
    assert "merc ablate" in failure(["ablate", "--data", str(data), "--set", "finetune_text=true"], capsys)
    assert "not causal" in failure(["predict", str(run), "--stream"], capsys)
    capsys.readouterr()
    assert main([*command, "--out", str(run), "--resume"]) == 0  # without the encoder it began with
    shutil.rmtree(run / "encoder")
    capsys.readouterr()
    assert "is not there: the text encoder" in failure(["evaluate", str(run)], capsys)


def test_bad_cases_leave_no_folder(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    corpus = spoken(encoder)
    for other, settings, message in (
        (replace(corpus, transcript=None), {}, "has no transcript"),
        (replace(corpus, transcript=np.full(len(corpus.labels), "")), {}, "no labelled utterance with words"),
        (replace(corpus, extraction=None), {}, "was not made with a text encoder; name the one"),
        (corpus, {"finetune_encoder": str(tmp_path)}, "text encoder .* cannot be loaded"),
        (corpus, {"finetune_lora": 2}, "finetune_lora needs peft: pip install peft"),
    ):
        with pytest.raises(UserError, match=message):
            tuned(tmp_path / "run", other, **settings)
        assert not (tmp_path / "run").exists()

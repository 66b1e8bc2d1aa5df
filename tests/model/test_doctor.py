from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.data.corpus import Corpus
from merc_model.data.published import DATASETS
from merc_model.data.synthetic import synthetic
from merc_model.doctor.findings import Finding, examine
from merc_model.doctor.probe import probe
from tests.model.small import small_corpus


def test_a_sound_corpus_has_no_finding() -> None:
    assert examine(small_corpus()) == []


def test_each_fault_is_found() -> None:
    corpus = small_corpus()
    visual = corpus.features["visual"].copy()
    visual[:, 1] = 0
    visual[corpus.rows(corpus.dialogues("train"))[:12]] = 0
    audio = corpus.features["audio"].copy()
    audio[corpus.rows(corpus.dialogues("test"))] *= 1000
    text = corpus.features["text"].copy()
    test, train = (corpus.rows(corpus.dialogues(split)) for split in ("test", "train"))
    text[test] = text[train[: len(test)]]
    found = examine(replace(corpus, features={"text": text, "audio": audio, "visual": visual}))
    lines = "\n".join(finding.text for finding in found)
    for words in (
        "1 of 6 columns never change",
        "rows are all zero",
        "in several splits",
        "the scale jumps between train and test in 5 of 5",
    ):
        assert words in lines
    assert [finding.misleads for finding in found] == sorted((f.misleads for f in found), reverse=True)


def test_the_exit_code_says_whether_it_misleads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = small_corpus()
    corpus.save(tmp_path / "good.npz")
    assert main(["doctor", str(tmp_path / "good.npz")]) == 0
    replace(corpus, features={"text": np.zeros_like(corpus.features["text"])}).save(tmp_path / "bad.npz")
    assert main(["doctor", str(tmp_path / "bad.npz")]) == 1
    assert "misleads: text: 8 of 8 columns never change" in capsys.readouterr().out


def found(corpus: Corpus, words: str) -> Finding:
    (finding,) = [finding for finding in examine(corpus) if words in finding.text]
    return finding


def test_the_embedded_corpus_does_not_mislead() -> None:
    assert not [finding.text for finding in examine(synthetic()) if finding.misleads]


def test_features_that_hold_the_label() -> None:
    corpus = synthetic()
    audio = corpus.features["audio"].copy()
    audio[:, 3] = corpus.labels
    assert found(replace(corpus, features={"audio": audio}), "audio: column 3 alone tells the label").misleads
    audio[:, :6] = 3 * np.eye(6)[corpus.labels] + np.random.default_rng(0).normal(size=(len(audio), 6))
    weak = np.random.default_rng(1).normal(size=audio.shape).astype(np.float32)
    finding = found(replace(corpus, features={"audio": audio, "visual": weak}), "audio: a linear probe")
    assert finding.misleads
    assert "do the features hold the label?" in finding.text


def test_features_that_were_fitted_to_the_training_labels() -> None:
    corpus = synthetic()
    text = np.random.default_rng(0).normal(size=corpus.features["text"].shape).astype(np.float32)
    train = corpus.rows(np.flatnonzero(corpus.split != "test"))
    text[train, :6] += 4 * np.eye(6, dtype=np.float32)[corpus.labels[train]]
    finding = found(replace(corpus, features={"text": text}), "fitted to the training labels")
    assert finding.misleads
    result = probe(replace(corpus, features={"text": text}), "text")
    assert result is not None
    assert result.folds > 0.9
    assert result.test is not None
    assert result.test < 0.4


def test_a_probe_needs_something_to_learn_from() -> None:
    assert probe(small_corpus(), "text") is None


def test_labels_are_compared_with_the_published_ones() -> None:
    sizes = {name: DATASETS["iemocap"].splits[name][1] for name in ("train", "test")}
    labels = [np.repeat(np.arange(6), counts) for counts in sizes.values()]
    ends = np.cumsum([0, *[sum(counts) for counts in sizes.values()]])
    corpus = Corpus(
        name="x",
        features={"text": np.random.default_rng(0).normal(size=(ends[-1], 2)).astype(np.float32)},
        labels=np.concatenate(labels),
        speakers=np.zeros(ends[-1], np.int64),
        offsets=np.sort(
            np.concatenate([np.linspace(0, ends[1], 121).astype(int)[:-1], np.linspace(*ends[1:], 32)])
        ).astype(np.int64),
        dialogue_ids=np.array([f"d{number}" for number in range(151)]),
        split=np.array(["train"] * 120 + ["test"] * 31),
        label_names=np.array(DATASETS["iemocap"].label_names),
    )
    assert not [finding for finding in examine(corpus) if finding.text.startswith("labels")]
    wrong = corpus.label_names[[1, 0, 2, 3, 4, 5]]
    finding = found(
        replace(corpus, label_names=wrong), "labels: train and valid of iemocap: as published, but for other"
    )
    assert finding.misleads
    turned = np.where(corpus.split == "test", "train", "test")
    assert found(replace(corpus, split=turned), "labels: test of iemocap: as published for train").misleads
    fewer = replace(corpus, labels=np.where(np.arange(ends[-1]) == 0, -100, corpus.labels))
    assert not found(fewer, "labels: train and valid of iemocap: not as published").misleads


def test_a_dialogue_under_two_ids_and_people_in_training_and_test() -> None:
    corpus = small_corpus(lengths=(4,) * 15)
    features = {modality: values.copy() for modality, values in corpus.features.items()}
    train, test = corpus.dialogues("train")[0], corpus.dialogues("test")[0]
    for values in features.values():
        values[corpus.rows(np.array([test]))] = values[corpus.rows(np.array([train]))]
    assert found(replace(corpus, features=features), "'d0' of train and 'd4' of test have the same features").misleads
    names = np.array([f"person {number % 7}" for number in range(60)])
    assert not found(replace(corpus, speaker_names=names), "speakers: 6 of").misleads
    assert not found(replace(corpus, groups=np.full(15, "one")), "groups: 1 of").misleads


def test_findings_follow_a_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = small_corpus()
    replace(corpus, features={"text": np.zeros_like(corpus.features["text"])}).save(tmp_path / "bad.npz")
    arguments = ["convert", str(tmp_path / "bad.npz"), "--groups", "prefix:1", "--out", str(tmp_path / "c.npz")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("misleads: text: 8 of 8 columns never change")
    assert lines[-1].endswith(f"merc doctor {tmp_path / 'c.npz'} lists them")

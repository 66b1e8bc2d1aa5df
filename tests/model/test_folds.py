from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus
from merc_model.data.synthetic import synthetic
from tests.model.test_corpus import refusal, rewritten


def grouped(sizes: tuple[int, ...] = (10, 14, 12, 9)) -> Corpus:
    """The synthetic corpus, everything but its test dialogues in groups of these sizes, in mixed order."""
    corpus = synthetic()
    split = np.where(corpus.split == "test", "test", "train")
    names = np.repeat([f"show-{number}" for number in range(len(sizes))], sizes)
    groups = np.full(len(split), "finale", dtype="<U10")
    own = np.random.default_rng(0).permutation(np.flatnonzero(split == "train"))
    groups[own] = np.resize(names, len(own))
    return replace(corpus, split=split, groups=groups)


def groups_of(corpus: Corpus, split: str) -> set[str]:
    assert corpus.groups is not None
    return set(corpus.groups[corpus.split == split].tolist())


def test_groups_survive_the_file_and_count_in_the_fingerprint(tmp_path: Path) -> None:
    corpus = grouped()
    corpus.save(tmp_path / "c.npz")
    loaded = Corpus.load(tmp_path / "c.npz")
    assert loaded.groups is not None
    np.testing.assert_array_equal(loaded.groups, corpus.groups)
    assert loaded.fingerprint() == corpus.fingerprint() != replace(corpus, groups=None).fingerprint()
    synthetic().save(tmp_path / "c.npz")
    assert Corpus.load(tmp_path / "c.npz").groups is None


def test_wrong_groups_are_named(tmp_path: Path) -> None:
    assert "groups: expected (72,), one for each dialogue, got (3,)" in refusal(
        lambda: replace(synthetic(), groups=np.array(["a", "b", "c"]))
    )
    grouped().save(tmp_path / "c.npz")
    path = rewritten(tmp_path / "c.npz", lambda arrays: arrays.update(groups=np.arange(72)))
    assert "groups: expected strings, got int64" in refusal(lambda: Corpus.load(path))


def test_a_part_of_a_corpus_keeps_everything_of_its_dialogues() -> None:
    corpus = grouped()
    part = corpus.only(np.array([5, 2]))
    assert part.dialogue_ids.tolist() == ["synthetic-005", "synthetic-002"]
    assert part.groups is not None
    assert corpus.groups is not None
    assert part.groups.tolist() == corpus.groups[[5, 2]].tolist()
    for new, old in ((0, 5), (1, 2)):
        rows, whole = part.rows(np.array([new])), corpus.rows(np.array([old]))
        np.testing.assert_array_equal(part.labels[rows], corpus.labels[whole])
        np.testing.assert_array_equal(part.speakers[rows], corpus.speakers[whole])
        for modality in corpus.features:
            np.testing.assert_array_equal(part.features[modality][rows], corpus.features[modality][whole])


def test_the_validation_cut_takes_whole_groups() -> None:
    cut = grouped().with_validation(0.15)
    assert len(groups_of(cut, "valid")) == 1
    assert not groups_of(cut, "valid") & groups_of(cut, "train")
    many = grouped().with_validation(0.7)
    assert 0.7 * 54 <= len(many.dialogues("valid")) < 54, "one group more rather than too few"
    assert len(groups_of(grouped((44, 1)).with_validation(0.5), "valid")) == 1, "never all groups"


@pytest.mark.parametrize("labelled", [[0, 1], [3, 17], [0, 1, 2], list(range(19))])
@pytest.mark.parametrize("group", [1, 2])
def test_the_validation_cut_leaves_labels_on_both_sides(labelled: list[int], group: int) -> None:
    """Twenty groups of one or two dialogues; some groups labelled."""
    labels = np.full((20, group), IGNORE_INDEX)
    labels[labelled] = 0
    corpus = Corpus(
        name="sparse",
        features={"text": np.ones((labels.size, 1), np.float32)},
        labels=labels.ravel(),
        speakers=np.zeros(labels.size, np.int64),
        offsets=np.arange(labels.size + 1),
        dialogue_ids=np.array([str(number) for number in range(labels.size)]),
        split=np.array(["train"] * labels.size),
        label_names=np.array(["only"]),
        groups=np.repeat([f"group-{number}" for number in range(20)], group),
    )
    cut = corpus.with_validation(0.05)  # a single group
    assert cut.class_counts(cut.dialogues("train")).sum() > 0
    assert cut.class_counts(cut.dialogues("valid")).sum() > 0


def test_a_class_that_one_group_has_stays_in_training() -> None:
    corpus = grouped()
    assert corpus.groups is not None
    owner = np.repeat(corpus.groups == "show-1", np.diff(corpus.offsets))
    labels = np.where(owner & (corpus.labels == 0), 5, np.where(corpus.labels == 5, 0, corpus.labels))
    labels = np.where(owner, labels, np.minimum(labels, 4))
    cut = replace(corpus, labels=labels).with_validation(0.15)
    assert (cut.class_counts(cut.dialogues("train")) > 0).all()


def test_one_group_cannot_be_cut() -> None:
    message = refusal(lambda: grouped((1,)).with_validation(0.5))
    assert "cannot cut a validation set of 0.5 from 54 training dialogues of 1 groups" in message


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_folds_cover_all_but_the_test_dialogues_once(groups: bool, count: int) -> None:
    corpus = grouped() if groups else replace(grouped(), groups=None)
    folds = corpus.folds(count)
    own = corpus.dialogue_ids[corpus.split != "test"].tolist()
    assert len(folds) == count
    for fold in folds:
        assert fold.dialogue_ids.tolist() == own, "no test dialogue, and the order of the corpus"
        assert set(fold.split.tolist()) == {"train", "valid"}
        assert not groups or not groups_of(fold, "valid") & groups_of(fold, "train")
    held = np.sum([fold.split == "valid" for fold in folds], axis=0)
    np.testing.assert_array_equal(held, 1)
    for fold, again in zip(folds, corpus.folds(count), strict=True):
        np.testing.assert_array_equal(fold.split, again.split)


def test_folds_by_dialogue_are_alike() -> None:
    corpus = synthetic()
    whole = corpus.class_counts(np.flatnonzero(corpus.split != "test"))
    for fold in corpus.folds(4):
        counts = fold.class_counts(fold.dialogues("valid"))
        assert abs(counts.sum() / whole.sum() - 0.25) < 0.03
        assert np.abs(counts / counts.sum() - whole / whole.sum()).sum() < 0.25


def test_as_many_folds_as_groups_are_the_groups() -> None:
    assert sorted(groups_of(fold, "valid").pop() for fold in grouped().folds(4)) == [f"show-{n}" for n in range(4)]


@pytest.mark.parametrize("count", [-1, 0, 1, 5])
def test_impossible_folds_are_refused(count: int) -> None:
    message = refusal(lambda: grouped().folds(count))
    assert f"folds: expected 2 to 4, the groups of dialogues to train on, got {count}" in message


def test_convert_gives_a_corpus_groups_by_the_beginning_of_its_ids(tmp_path: Path, capsys: Any) -> None:
    corpus = replace(synthetic(dialogues=6), dialogue_ids=np.array(["A1", "A2", "B1", "B2", "B3", "A3"]))
    corpus.save(tmp_path / "OLD.NPZ")
    new = tmp_path / "new.npz"
    assert main(["convert", str(tmp_path / "OLD.NPZ"), "--out", str(new), "--groups", "prefix:1"]) == 0
    assert "groups: 2 (A 3, B 3 dialogues)" in capsys.readouterr().out
    loaded = Corpus.load(new)
    assert loaded.groups is not None
    assert loaded.groups.tolist() == ["A", "A", "B", "B", "B", "A"]
    assert replace(loaded, groups=None).fingerprint() == corpus.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "is a corpus already; merc convert can only add groups to it, with --groups"),
        (["--groups", "prefix:0"], "groups: expected prefix:N, N characters of the dialogue id, got 'prefix:0'"),
        (["--groups", "session"], "got 'session'"),
    ],
)
def test_what_convert_cannot_group_by(arguments: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    synthetic(dialogues=3).save(tmp_path / "old.npz")
    out = tmp_path / "new.npz"
    assert main(["convert", str(tmp_path / "old.npz"), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()

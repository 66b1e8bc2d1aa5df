from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus
from merc_model.data.synthetic import synthetic
from merc_model.errors import UserError

Arrays = dict[str, NDArray[Any]]


def small() -> Corpus:
    """Three dialogues of 2, 1 and 3 utterances; text and audio; one audio row missing, one row unlabelled."""
    audio = np.arange(12, dtype=np.float32).reshape(6, 2)
    audio[4] = np.nan
    return Corpus(
        name="small",
        features={"text": np.arange(18, dtype=np.float32).reshape(6, 3), "audio": audio},
        labels=np.array([0, 1, 2, IGNORE_INDEX, 1, 0]),
        speakers=np.array([0, 1, 0, 0, 1, 0]),
        offsets=np.array([0, 2, 3, 6]),
        dialogue_ids=np.array(["a", "b", "c"]),
        split=np.array(["train", "valid", "test"]),
        label_names=np.array(["glad", "sad", "mad"]),
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small().save(tmp_path / "small.npz")
    return tmp_path / "small.npz"


def refusal(action: Callable[[], object]) -> str:
    """The message of the UserError that ``action`` ends in; always one line."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def rewritten(path: Path, change: Callable[[Arrays], object]) -> Path:
    """The file at ``path`` with some arrays changed, so that only what is tested is wrong."""
    with np.load(path) as archive:
        arrays: Arrays = dict(archive)
    change(arrays)
    np.savez(path, allow_pickle=True, **arrays)
    return path


def test_round_trip(saved: Path) -> None:
    loaded = Corpus.load(saved)
    assert loaded.name == "small"
    assert loaded.fingerprint() == small().fingerprint()
    assert loaded.dims == {"text": 3, "audio": 2}
    np.testing.assert_array_equal(loaded.features["audio"], small().features["audio"])


def test_saving_twice_gives_the_same_contents(tmp_path: Path) -> None:
    corpus = synthetic(dialogues=3)
    for _ in range(2):
        corpus.save(tmp_path / "c.npz")
    assert Corpus.load(tmp_path / "c.npz").fingerprint() == corpus.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"], "no temporary file stays behind"


def test_wider_types_are_narrowed(saved: Path) -> None:
    def change(arrays: Arrays) -> None:
        arrays["text"] = arrays["text"].astype(np.float64)
        arrays["labels"] = arrays["labels"].astype(np.int8)
        arrays["offsets"] = arrays["offsets"].astype(np.uint32)

    loaded = Corpus.load(rewritten(saved, change))
    assert loaded.features["text"].dtype == np.float32
    assert loaded.labels.dtype == loaded.offsets.dtype == np.int64
    assert loaded.fingerprint() == small().fingerprint()


def test_rows_and_counts() -> None:
    corpus = small()
    assert corpus.num_classes == 3
    assert corpus.dialogues("test").tolist() == [2]
    assert corpus.rows(np.array([2, 0])).tolist() == [3, 4, 5, 0, 1]
    assert corpus.rows(np.array([], np.int64)).tolist() == []
    assert corpus.class_counts(np.array([0, 2])).tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {}}, "no features: give at least one of text, audio, visual"),
        ({"features": {"smell": np.ones((6, 1), np.float32)}}, "unknown modality 'smell'"),
        ({"features": {"text": np.ones((5, 3), np.float32)}}, r"text: expected (6, D), a row for each label"),
        ({"features": {"text": np.ones(6, np.float32)}}, "text: expected (6, D)"),
        ({"features": {"text": np.ones((6, 0), np.float32)}}, "text: expected (6, D)"),
        ({"features": {"text": np.full((6, 1), np.inf, np.float32)}}, "text: infinite at dialogue 'a', utterance 1"),
        ({"features": {"text": np.eye(6) * -1.7e300}}, "text: -1.7e+300, more than float32 holds, at dialogue 'a', "),
        ({"features": {"text": np.full((6, 1), np.nan, np.float32)}}, "text: every row has a NaN"),
        ({"features": {"text": np.diag([np.nan] * 6).astype(np.float32)}}, "text: every row has a NaN"),
        ({"speakers": np.zeros(5, np.int64)}, "speakers: expected (6,), got (5,)"),
        ({"speakers": np.array([0, 1, -1, 0, 0, 0])}, "speakers: expected indices from 0, got -1"),
        ({"offsets": np.array([0, 2, 6])}, "offsets: expected (4,), one more than dialogue_ids, got (3,)"),
        ({"offsets": np.array([], np.int64)}, "offsets: expected (4,)"),
        ({"offsets": np.array([1, 2, 3, 6])}, "offsets: expected to run from 0 to 6, got 1 to 6"),
        ({"offsets": np.array([0, 2, 3, 5])}, "offsets: expected to run from 0 to 6, got 0 to 5"),
        ({"offsets": np.array([0, 4, 3, 6])}, "offsets: must not fall, but do after dialogue 1"),
        ({"offsets": np.array([0, 2, 2, 6])}, "dialogue 'b' has no utterance"),
        ({"dialogue_ids": np.array([], np.str_)}, "no dialogue"),
        (
            {"features": {"text": np.where(np.arange(3) == 1, np.nan, np.ones((6, 3)))}},
            "text: every row has a NaN (column 1 is NaN in 6 rows that hold other values)",
        ),
        ({"dialogue_ids": np.array(["a", "b", "a"])}, "dialogue_ids: 'a' stands in train and in test"),
        (
            {"dialogue_ids": np.array(["a", "b", "b"]), "split": np.array(["train"] * 3)},
            "dialogue_ids: 'b' stands twice; give each dialogue an id of its own",
        ),
        ({"split": np.array(["train", "test"])}, "split: expected (3,), got (2,)"),
        ({"split": np.array(["train", "dev", "test"])}, "split: expected train, valid, test, got 'dev'"),
        ({"label_names": np.array(["a", "b", "a"])}, "label_names: a name stands twice"),
        (
            {"label_names": np.array(["a", "b"])},
            "labels: expected 0 to 1, or -100 for unlabelled, got 0 to 2",
        ),
        (
            {"labels": np.array([0, 1, 2, -1, 1, 0])},
            "labels: expected 0 to 2, or -100 for unlabelled, got -1",
        ),
    ],
)
def test_contradictions_are_named(change: dict[str, Any], message: str) -> None:
    refused = refusal(lambda: replace(small(), **change))
    assert refused.startswith("corpus small: ")
    assert message in refused


def objects(rows: list[Any]) -> NDArray[Any]:
    """One object a row, as a column of arrays of a pandas table is."""
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0, 1, 2, IGNORE_INDEX, 1, 0]},
        {"labels": np.array([0, 1, 2, IGNORE_INDEX, 1, 0], object)},
        {"labels": np.array([0, 1, 2, IGNORE_INDEX, 1, 0], np.float32), "speakers": [0.0, 1, 0, 0, 1, 0]},
        {"labels": np.array([0, 1, 2, IGNORE_INDEX, 1, 0], np.int32), "offsets": np.array([0, 2, 3, 6], np.uint64)},
        {"speakers": np.array([0, 1, 0, 0, 1, 0], bool)},
        {"dialogue_ids": ["a", "b", "c"], "split": ("train", "valid", "test"), "label_names": ["glad", "sad", "mad"]},
        {"dialogue_ids": np.array(["a", "b", "c"], object), "label_names": np.array(["glad", "sad", "mad"], object)},
        {"features": {m: rows.astype(np.float64) for m, rows in small().features.items()}},
        {"features": {m: rows.tolist() for m, rows in small().features.items()}},
        {"features": {m: np.asfortranarray(rows.astype(object)) for m, rows in small().features.items()}},
        {"features": {m: objects(list(rows)) for m, rows in small().features.items()}},
        {"features": {m: [None if np.isnan(row).any() else row for row in r] for m, r in small().features.items()}},
    ],
)
def test_what_is_harmless_is_converted(change: dict[str, Any], tmp_path: Path) -> None:
    corpus = replace(small(), **change)
    assert corpus.fingerprint() == small().fingerprint()
    corpus.save(tmp_path / "c.npz")
    assert Corpus.load(tmp_path / "c.npz").fingerprint() == corpus.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 2, None, 1, 0]}, "labels: expected integers, got objects (NoneType, int)"),
        ({"labels": np.array([0, 1, 2, np.nan, 1, 0])}, "labels: expected integers, got nan at 3"),
        ({"labels": ["glad"] * 6}, "labels: expected integers, got <U4"),
        (
            {"labels": np.array([0, 1, 2, 2**64 - 1, 1, 0], np.uint64)},
            "labels: expected integers, got 18446744073709551615 at 3",
        ),
        ({"labels": [[0]] * 6}, "labels: expected one axis, got shape (6, 1)"),
        ({"labels": 3}, "labels: expected one axis, got shape ()"),
        ({"labels": np.ma.masked_equal([0, 1, 2, 2, 1, 0], 2)}, "labels: has masked values; fill them first"),
        ({"features": {"text": np.ma.masked_equal([[1.0]] * 3 + [[2.0]] * 3, 2)}}, "text: has masked values"),
        ({"speakers": ["Ann", "Bob"] * 3}, "speakers: expected integers, got <U3"),
        ({"offsets": [0, 2.5, 3, 6]}, "offsets: expected integers, got 2.5 at 1"),
        ({"dialogue_ids": [1, 2, 3]}, "dialogue_ids: expected strings, got int64"),
        ({"dialogue_ids": np.array(["a", 2, "c"], object)}, "dialogue_ids: expected strings, got objects (int, str)"),
        ({"label_names": [b"a", b"b", b"c"]}, "label_names: expected strings, got |S1"),
        ({"features": {"text": [[1, 2]] * 5 + [[1]]}}, "text: rows of different shapes: (1,), (2,)"),
        ({"features": {"text": [["1", "2"]] * 6}}, "text: expected numbers, got <U1"),
        ({"features": {"text": [[1, "2"], None] * 3}}, "text: expected numbers, got <U21 in row 0"),
        ({"features": {"text": [[10**400]] * 6}}, "text: row 0 holds a number that is too large"),
        ({"features": {"text": {}}}, "text: expected numbers, got objects (dict)"),
        ({"features": {"text": torch.ones(6, 2, requires_grad=True)}}, "text: expected an array, got Tensor"),
    ],
)
def test_what_is_not_names_the_array(change: dict[str, Any], message: str) -> None:
    assert f"corpus small: {message}" in refusal(lambda: replace(small(), **change))


def test_a_corpus_without_any_label_is_one() -> None:
    corpus = replace(small(), labels=np.full(6, IGNORE_INDEX))
    assert corpus.class_counts(np.arange(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("labels", np.array([0, 1, 0.5, 0, 0, 0]), "labels: expected integers, got 0.5 at 2"),
        ("offsets", np.array(["0", "6"]), "offsets: expected integers, got <U1"),
        ("labels", np.zeros((6, 1), np.int64), "labels: expected one axis, got shape (6, 1)"),
        ("dialogue_ids", np.arange(3), "dialogue_ids: expected strings, got int64"),
        ("dialogue_ids", np.array([b"\xff", b"b", b"c"]), "dialogue_ids: expected strings, got |S1"),
        ("text", np.full((6, 3), "x"), "text: expected numbers, got <U1"),
        ("text", np.ones((6, 3), np.complex64), "text: expected numbers, got complex64"),
        ("text", np.full((6, 3), 1e300), "text: 1e+300, more than float32 holds, at dialogue 'a', utterance 1"),
        ("labels", np.array([0, 1, 2, 0, 1, None]), "objects and pickles are refused"),
        ("extra", np.array([{}]), "objects and pickles are refused"),
    ],
)
def test_wrong_types_in_a_file_are_named(saved: Path, key: str, array: NDArray[Any], message: str) -> None:
    path = rewritten(saved, lambda arrays: arrays.update({key: array}))
    assert message in refusal(lambda: Corpus.load(path))


@pytest.mark.parametrize("key", ["labels", "speakers", "offsets", "dialogue_ids", "split", "label_names"])
def test_a_missing_array_is_named(saved: Path, key: str) -> None:
    path = rewritten(saved, lambda arrays: arrays.pop(key))
    assert f"not a corpus: no array '{key}'" in refusal(lambda: Corpus.load(path))


def test_a_modality_may_be_left_out(saved: Path) -> None:
    assert Corpus.load(rewritten(saved, lambda arrays: arrays.pop("audio"))).dims == {"text": 3}


def test_a_pickle_in_an_archive_does_not_run(saved: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = rewritten(saved, lambda arrays: arrays.update(trap=np.array([Trap()], dtype=object)))
    assert "refused" in refusal(lambda: Corpus.load(path))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
def test_a_file_cut_short(saved: Path, part: float) -> None:
    contents = saved.read_bytes()
    saved.write_bytes(contents[: int(part * len(contents))])
    assert "cut short" in refusal(lambda: Corpus.load(saved))


def test_damaged_bytes_end_in_a_user_error_or_none(saved: Path) -> None:
    contents = saved.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(contents)
        for position in generator.integers(len(damaged), size=3):
            damaged[position] = generator.integers(256)
        saved.write_bytes(damaged)
        with contextlib.suppress(UserError):
            Corpus.load(saved)
            continue
        refused += 1
    assert refused > 200


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello\n")
    np.save(tmp_path / "array.npy", np.zeros(3))
    assert "not a readable .npz" in refusal(lambda: Corpus.load(tmp_path / "text.npz"))
    assert "got a single array" in refusal(lambda: Corpus.load(tmp_path / "array.npy"))
    assert "is a folder" in refusal(lambda: Corpus.load(tmp_path))
    assert "no such file" in refusal(lambda: Corpus.load(tmp_path / "away.npz"))
    assert "cannot be read" in refusal(lambda: Corpus.load(tmp_path / "array.npy" / "below.npz"))


def test_an_unwritable_target_stays_as_it_was(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert "No space left" in refusal(lambda: synthetic(dialogues=3).save(saved))
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [saved.name], "no temporary file stays behind"


def test_targets_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path, tmp_path / "pipe"):
        assert "a folder or device" in refusal(lambda target=target: small().save(target))  # type: ignore[misc]
    assert (tmp_path / "pipe").is_fifo()
    assert "No such file" in refusal(lambda: small().save(tmp_path / "away" / "c.npz"))
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_the_fingerprint_sees_every_array() -> None:
    corpus = small()
    changed = [
        replace(corpus, features={"text": corpus.features["text"]}),
        replace(corpus, features={**corpus.features, "text": corpus.features["text"] + 1}),
        replace(corpus, labels=np.array([0, 1, 2, 0, 1, 0])),
        replace(corpus, speakers=1 - corpus.speakers),
        replace(corpus, offsets=np.array([0, 1, 3, 6])),
        replace(corpus, dialogue_ids=np.array(["a", "b", "d"])),
        replace(corpus, split=np.array(["train", "test", "test"])),
        replace(corpus, label_names=np.array(["glad", "mad", "sad"])),
    ]
    assert len({corpus.fingerprint(), *(other.fingerprint() for other in changed)}) == len(changed) + 1
    assert replace(corpus, name="other").fingerprint() == corpus.fingerprint()
    turned = dict(reversed(corpus.features.items()))
    assert replace(corpus, features=turned).fingerprint() == corpus.fingerprint()


def without_validation() -> Corpus:
    corpus = synthetic()
    return replace(corpus, split=np.where(corpus.split == "test", "test", "train"))


def test_the_validation_cut_is_the_same_each_time_and_by_dialogue() -> None:
    corpus = without_validation()
    cut = corpus.with_validation(0.1)
    np.testing.assert_array_equal(cut.split, corpus.with_validation(0.1).split)
    assert len(cut.dialogues("valid")) == round(0.1 * len(corpus.dialogues("train")))
    assert set(cut.dialogues("valid")) < set(corpus.dialogues("train"))
    np.testing.assert_array_equal(cut.dialogues("test"), corpus.dialogues("test"))
    assert not len(corpus.dialogues("valid")), "the corpus itself is not changed"


def test_the_validation_cut_has_the_classes_of_the_training_set() -> None:
    corpus = without_validation()
    cut = corpus.with_validation(0.15)
    whole, valid = corpus.class_counts(corpus.dialogues("train")), cut.class_counts(cut.dialogues("valid"))
    assert np.abs(valid / valid.sum() - whole / whole.sum()).sum() < 0.15
    first = corpus.class_counts(corpus.dialogues("train")[: len(cut.dialogues("valid"))])
    assert np.abs(first / first.sum() - whole / whole.sum()).sum() > 0.15, "which is no matter of course"


@pytest.mark.parametrize("labelled", [[0, 1], [3, 17], [0, 1, 2], list(range(17))])
def test_the_validation_cut_leaves_labels_on_both_sides(labelled: list[int]) -> None:
    """Twenty dialogues of two utterances, three to be cut off; some of the twenty labelled."""
    labels = np.full((20, 2), IGNORE_INDEX)
    labels[labelled] = [0, 1]
    corpus = Corpus(
        name="sparse",
        features={"text": np.ones((40, 1))},
        labels=labels.ravel(),
        speakers=np.zeros(40, int),
        offsets=np.arange(0, 41, 2),
        dialogue_ids=[str(number) for number in range(20)],
        split=["train"] * 20,
        label_names=["glad", "sad"],
    )
    cut = corpus.with_validation(0.15)
    assert len(cut.dialogues("valid")) == 3
    assert cut.class_counts(cut.dialogues("valid")).all()
    assert cut.class_counts(cut.dialogues("train")).all()
    one = replace(corpus, labels=np.where(np.arange(40) < 2, 0, IGNORE_INDEX)).with_validation(0.15)
    assert one.class_counts(one.dialogues("train")).sum() == 2, "the only labels stay to be trained on"


def test_the_validation_cut_takes_no_class_whole() -> None:
    """The one row of "sad" is in the first dialogue, with which the shares of the classes are closer."""
    corpus = Corpus(
        name="rare",
        features={"text": np.ones((20, 1))},
        labels=[1] + [0] * 19,
        speakers=[0] * 20,
        offsets=[0, 8, 12, 16, 20],
        dialogue_ids=["a", "b", "c", "d"],
        split=["train"] * 4,
        label_names=["glad", "sad"],
    )
    cut = corpus.with_validation(0.5)
    assert cut.class_counts(cut.dialogues("train")).tolist() == [11, 1]


def test_a_validation_split_that_is_there_stays() -> None:
    corpus = synthetic()
    assert corpus.with_validation(0.5) is corpus


@pytest.mark.parametrize("fraction", [0.0, 0.005, 1.0, -0.1])
def test_an_impossible_validation_cut_is_refused(fraction: float) -> None:
    corpus = without_validation()
    assert "cannot cut a validation set" in refusal(lambda: corpus.with_validation(fraction))

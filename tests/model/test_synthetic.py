from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from merc_model.data.corpus import SPLITS, Corpus
from merc_model.data.synthetic import IEMOCAP_COUNTS, LABEL_NAMES, synthetic


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return synthetic()


def training_rows(corpus: Corpus) -> NDArray[np.int64]:
    return corpus.rows(corpus.dialogues("train"))


def standardised(corpus: Corpus, modality: str) -> NDArray[np.float64]:
    rows = corpus.features[modality].astype(np.float64)
    fitted = rows[training_rows(corpus)]
    result: NDArray[np.float64] = np.nan_to_num((rows - np.nanmean(fitted, 0)) / np.nanstd(fitted, 0))
    return result


def score(corpus: Corpus, features: NDArray[np.float64]) -> float:
    """Weighted F1 on test of a logistic regression on single rows."""
    train, test = training_rows(corpus), corpus.rows(corpus.dialogues("test"))
    model = LogisticRegression(C=0.01, max_iter=500).fit(features[train], corpus.labels[train])
    return float(f1_score(corpus.labels[test], model.predict(features[test]), average="weighted"))


def neighbours(corpus: Corpus, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the rows of the same speaker up to five turns away."""
    dialogue = np.repeat(np.arange(len(corpus.split)), np.diff(corpus.offsets))
    turn = np.arange(len(corpus.labels))
    near = np.abs(turn[:, None] - turn) <= 5
    near &= (dialogue[:, None] == dialogue) & (corpus.speakers[:, None] == corpus.speakers)
    np.fill_diagonal(near, False)
    result: NDArray[np.float64] = near @ features / np.maximum(near.sum(1, keepdims=True), 1)
    return result


def test_the_same_seed_gives_the_same_bits(corpus: Corpus) -> None:
    assert synthetic().fingerprint() == corpus.fingerprint()
    assert synthetic(seed=1).fingerprint() != corpus.fingerprint()


def test_it_leaves_the_global_generator_alone() -> None:
    state = repr(np.random.get_state())  # noqa: NPY002
    synthetic(dialogues=3)
    assert repr(np.random.get_state()) == state  # noqa: NPY002


def test_shapes_and_names(corpus: Corpus) -> None:
    assert corpus.name == "synthetic"
    assert corpus.label_names.tolist() == list(LABEL_NAMES)
    assert corpus.dims == {"text": 64, "audio": 24, "visual": 32}
    assert 60 <= len(corpus.dialogue_ids) <= 80
    assert 1800 <= len(corpus.labels) <= 2200
    sizes = np.diff(corpus.offsets)
    assert sizes.min() >= 15
    assert sizes.max() <= 40
    for field in dataclasses.fields(Corpus):
        value = getattr(corpus, field.name)
        if isinstance(value, np.ndarray) and value.dtype.kind == "i":
            assert value.dtype == np.int64, field.name
    assert all(rows.dtype == np.float32 for rows in corpus.features.values())


def test_every_split_has_every_class(corpus: Corpus) -> None:
    for split in SPLITS:
        assert corpus.class_counts(corpus.dialogues(split)).min() > 0, split
    assert len(corpus.dialogues("train")) > len(corpus.dialogues("test")) > len(corpus.dialogues("valid"))


def test_two_or_three_speakers_take_turns(corpus: Corpus) -> None:
    parties = []
    for start, end in zip(corpus.offsets, corpus.offsets[1:], strict=False):
        speakers = corpus.speakers[start:end]
        parties.append(len(set(speakers.tolist())))
        assert set(speakers.tolist()) == set(range(parties[-1]))
        assert np.mean(speakers[1:] != speakers[:-1]) > 0.4
    assert set(parties) == {2, 3}
    assert parties.count(2) > 2 * parties.count(3)


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_as_unequal_as_in_iemocap(seed: int) -> None:
    labels = synthetic(seed).labels
    share = np.bincount(labels, minlength=6) / len(labels)
    expected = np.array(IEMOCAP_COUNTS) / sum(IEMOCAP_COUNTS)
    np.testing.assert_allclose(share, expected, atol=0.06)
    assert share.argmin() == LABEL_NAMES.index("happy")


def test_missing_rows(corpus: Corpus) -> None:
    assert not np.isnan(corpus.features["text"]).any()
    for modality in ("audio", "visual"):
        rows = corpus.features[modality]
        gone = np.isnan(rows).any(1)
        assert np.array_equal(gone, np.isnan(rows).all(1)), "a row is missing whole"
        assert 0.02 < gone.mean() < 0.25
    unseen = [
        np.isnan(corpus.features["visual"][start:end]).all()
        for start, end in zip(corpus.offsets, corpus.offsets[1:], strict=False)
    ]
    assert 0 < sum(unseen) < len(unseen) / 4, "some dialogues have no video at all"


def test_audio_comes_in_units_of_its_own(corpus: Corpus) -> None:
    deviations = np.nanstd(corpus.features["audio"], 0)
    assert deviations.max() > 1000 * deviations.min()


def test_emotions_last_and_pass_on(corpus: Corpus) -> None:
    kept, taken, chance = [], [], np.square(np.bincount(corpus.labels) / len(corpus.labels)).sum()
    for start, end in zip(corpus.offsets, corpus.offsets[1:], strict=False):
        labels, speakers = corpus.labels[start:end], corpus.speakers[start:end]
        for turn in range(2, end - start):
            own = np.flatnonzero(speakers[:turn] == speakers[turn])
            if len(own) and speakers[turn - 1] != speakers[turn]:
                before, heard = labels[own[-1]], labels[turn - 1]
                if before != heard:
                    kept.append(labels[turn] == before)
                    taken.append(labels[turn] == heard)
    assert np.mean(kept) > 2 * chance
    assert np.mean(taken) > chance
    assert np.mean(kept) > np.mean(taken)


def test_what_each_modality_tells(corpus: Corpus) -> None:
    text, audio, visual = (standardised(corpus, modality) for modality in ("text", "audio", "visual"))
    alone, heard, seen = score(corpus, text), score(corpus, audio), score(corpus, visual)
    together = np.concatenate([text, audio, visual], 1)
    fused = score(corpus, together)
    assert 0.60 < alone < 0.68
    assert 0.30 < heard < 0.40
    assert 0.30 < seen < 0.40
    assert fused > alone + 0.05
    assert score(corpus, np.concatenate([together, neighbours(corpus, together)], 1)) > fused + 0.02


def test_a_small_one() -> None:
    corpus = synthetic(seed=3, dialogues=3, lengths=(1, 2))
    assert sorted(corpus.split.tolist()) == sorted(SPLITS)
    assert np.diff(corpus.offsets).max() <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dialogues": 2}, "dialogues: expected at least 3, got 2"),
        ({"lengths": (0, 5)}, "lengths: expected 1 <= fewest <= most"),
        ({"lengths": (6, 5)}, "lengths: expected 1 <= fewest <= most"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic(**options)  # type: ignore[arg-type]

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score

from merc_model.ablation.significance import MEASURES, _draws, compare, resampled

CLASSES = 4


def predictor(labels: NDArray[np.int64], right: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Right with that chance, else any class."""
    guess = generator.integers(CLASSES, size=labels.shape)
    return np.where(generator.random(labels.shape) < right, labels, guess)


def of_seeds(labels: NDArray[np.int64], predicted: NDArray[np.int64], measure: str) -> NDArray[np.float64]:
    average = measure.split("_")[0]
    return np.array([f1_score(labels, row, average=average, zero_division=0) for row in predicted])


def test_resamples_have_the_scores_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(CLASSES, 60, p=[0.7, 0.2, 0.1, 0.0])  # some resamples lack a class
    predicted = np.stack([predictor(labels, 0.5, generator) for _ in range(2)])
    scores = resampled(labels, predicted, CLASSES, 20)
    for resample, weights in enumerate(_draws(60, 20)):
        assert weights.sum() == 60
        drawn = np.repeat(np.arange(60), weights)
        for measure in MEASURES:
            options = {"labels": np.unique(labels[drawn]), "average": measure.split("_")[0], "zero_division": 0}
            expected = np.mean([f1_score(labels[drawn], row[drawn], **options) for row in predicted])
            np.testing.assert_allclose(scores[measure][resample], expected, rtol=1e-12)


def test_nothing_differs_from_itself() -> None:
    labels = np.arange(40) % CLASSES
    predicted = predictor(np.stack([labels] * 3), 0.5, np.random.default_rng(0))
    scores, seeds = resampled(labels, predicted, CLASSES), of_seeds(labels, predicted, "macro_f1")
    difference = compare(scores["macro_f1"], scores["macro_f1"], seeds, seeds)
    assert difference.as_dict() == {"mean": 0.0, "low": 0.0, "high": 0.0, "p_utterances": 1.0, "p_seeds": None}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_clear_difference_is_sure_in_both_ways(measure: str) -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(CLASSES, size=500)
    good, bad = (np.stack([predictor(labels, right, generator) for _ in range(5)]) for right in (0.6, 0.4))
    scores = [resampled(labels, rows, CLASSES)[measure] for rows in (good, bad)]
    seeds = [of_seeds(labels, rows, measure) for rows in (good, bad)]
    difference = compare(*scores, *seeds)
    assert 0.05 < difference.low < difference.mean < difference.high < 0.25
    assert difference.p_utterances < 0.005
    np.testing.assert_allclose(difference.p_seeds, stats.ttest_rel(*seeds).pvalue)
    assert compare(*scores[::-1], *seeds[::-1]).mean == -difference.mean


def test_one_seed_has_no_test_over_seeds() -> None:
    scores = np.array([0.1, 0.2])
    assert compare(scores, scores, np.array([0.5]), np.array([0.4])).p_seeds is None
    assert compare(scores, scores, np.full(3, 0.5), np.full(3, 0.4)).p_seeds is None


def test_where_nothing_differs_one_in_twenty_seems_to() -> None:
    generator = np.random.default_rng(2)
    sure = 0
    for _ in range(300):
        labels = generator.integers(CLASSES, size=200)
        scores = [resampled(labels, predictor(labels, 0.5, generator)[None], CLASSES, 400) for _ in range(2)]
        ways = [scores[index]["weighted_f1"] for index in (0, 1)]
        sure += compare(*ways, np.zeros(1), np.zeros(1)).p_utterances < 0.05
    assert 0.01 < sure / 300 < 0.1

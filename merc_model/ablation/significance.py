"""How sure a difference between two ways of predicting is: over the utterances that were drawn, and over seeds.

Every way has predictions (S, U): one row for each seed, of the same U labelled utterances.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEASURES = ("weighted_f1", "macro_f1")
_BLOCK = 250  # resamples weighed at once


@dataclass(frozen=True)
class Difference:
    """One way of predicting against another, in one measure.

    Attributes:
        mean: mean over seeds of the one, minus that of the other.
        low, high: 95 % interval of it, percentiles of a paired bootstrap over utterances.
        p_utterances: two-sided, of the same bootstrap.
        p_seeds: two-sided, paired t-test over seeds; None where seeds cannot tell (one seed, or all differ alike).
    """

    mean: float
    low: float
    high: float
    p_utterances: float
    p_seeds: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def resampled(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int, resamples: int = 2000
) -> dict[str, NDArray[np.float64]]:
    """Each measure, mean over seeds, of every resample of the utterances; the resamples are always the same.

    Args:
        labels: ``(U,)``.
        predicted: ``(S, U)``.
        classes: C.
        resamples: how many.

    Returns:
        measure → ``(resamples,)``.
    """
    draws = _draws(len(labels), resamples)
    truth = np.eye(classes, dtype=np.float32)[labels]
    scores: dict[str, list[NDArray[np.float64]]] = {measure: [] for measure in MEASURES}
    for start in range(0, resamples, _BLOCK):
        weights = draws[start : start + _BLOCK].astype(np.float32)  # exact: counts
        of_seeds = [_scores(weights, truth, np.eye(classes, dtype=np.float32)[row]) for row in predicted]
        for measure in MEASURES:
            scores[measure].append(np.mean([one[measure] for one in of_seeds], axis=0))
    return {measure: np.concatenate(parts) for measure, parts in scores.items()}


@functools.lru_cache(maxsize=1)
def _draws(utterances: int, resamples: int) -> NDArray[np.uint16]:
    """``(resamples, U)`` how often each utterance is drawn."""
    generator = np.random.default_rng(0)
    shares = np.full(utterances, 1 / utterances)
    return generator.multinomial(utterances, shares, resamples).astype(np.uint16)


def _scores(
    weights: NDArray[np.float32], truth: NDArray[np.float32], guess: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Weighted and macro F1 of each row of weights (R, U), as scikit-learn has them; (U, C) one-hot classes."""
    hits = (weights @ (truth * guess)).astype(np.float64)  # [R, C]
    true, guessed = (weights @ truth).astype(np.float64), (weights @ guess).astype(np.float64)
    f1 = 2 * hits / np.maximum(true + guessed, 1)
    occurring = true > 0
    return {
        "weighted_f1": (f1 * true).sum(axis=1) / true.sum(axis=1),
        "macro_f1": (f1 * occurring).sum(axis=1) / occurring.sum(axis=1),
    }


def compare(
    one: NDArray[np.float64], other: NDArray[np.float64], seeds: NDArray[np.float64], other_seeds: NDArray[np.float64]
) -> Difference:
    """The difference of one measure between two ways of predicting.

    Args:
        one: the measure of every resample, from `resampled`.
        other: the same of the other way, from the same resamples.
        seeds: ``(S,)`` the measure of each seed on the utterances as they are.
        other_seeds: the same of the other way, seed by seed; a way without seeds repeats its one value.
    """
    gaps = one - other
    low, high = np.percentile(gaps, (2.5, 97.5))
    tail = min((gaps <= 0).sum(), (gaps >= 0).sum()) + 1
    return Difference(
        mean=float(seeds.mean() - other_seeds.mean()),
        low=float(low),
        high=float(high),
        p_utterances=float(min(1.0, 2 * tail / (len(gaps) + 1))),
        p_seeds=_paired_test(seeds - other_seeds),
    )


def _paired_test(gaps: NDArray[np.float64]) -> float | None:
    if len(gaps) < 2 or np.ptp(gaps) <= 1e-12:
        return None
    from scipy import stats  # takes as long to import as torch

    return float(stats.ttest_1samp(gaps, 0.0).pvalue)

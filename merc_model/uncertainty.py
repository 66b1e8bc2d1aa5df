"""How sure the figures of one run are, and whether the model is as often right as it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000


def intervals(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], dialogues: NDArray[np.int64], classes: int
) -> dict[str, NDArray[np.float64]]:
    """95 % intervals: percentiles of a bootstrap over dialogues, whose utterances are not independent.

    Args:
        labels: ``(U,)``, all known.
        predicted: ``(U,)``.
        dialogues: ``(U,)``, of which dialogue each is.
        classes: C.

    Returns:
        ``weighted_f1``, ``macro_f1``, ``accuracy``, ``uar`` → ``(2,)``; ``f1`` → ``(2, C)``.
    """
    names, of = np.unique(dialogues, return_inverse=True)
    counts = np.zeros((len(names), classes, classes))
    np.add.at(counts, (of, labels, predicted), 1)
    shares = np.full(len(names), 1 / len(names))
    draws = np.random.default_rng(0).multinomial(len(names), shares, _RESAMPLES)
    resampled = scores(np.tensordot(draws, counts, axes=1))
    return {name: np.percentile(values, (2.5, 97.5), axis=0) for name, values in resampled.items()}


def scores(confusion: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The metrics of confusion matrices ``(R, C, C)``, rows the true class, as `evaluation.metrics` has them."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # [R, C]
    true, guessed = confusion.sum(axis=2), confusion.sum(axis=1)
    occurring, total = true > 0, true.sum(axis=1)
    f1 = 2 * hits / np.maximum(true + guessed, 1)
    recall = hits / np.maximum(true, 1)
    return {
        "weighted_f1": (f1 * true).sum(axis=1) / total,
        "macro_f1": (f1 * occurring).sum(axis=1) / occurring.sum(axis=1),
        "accuracy": hits.sum(axis=1) / total,
        "uar": recall.sum(axis=1) / occurring.sum(axis=1),
        "f1": f1,
    }


@dataclass(frozen=True)
class Calibration:
    """Of B bins of confidence, those that hold an utterance.

    Attributes:
        confidence: mean probability of the predicted emotion.
        accuracy: share that is right.
        counts: utterances.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two over the utterances."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.counts))


def calibration(labels: NDArray[np.int64], probabilities: NDArray[np.float32], bins: int = 10) -> Calibration:
    """How often the model is right where it says so; bins of equal width."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(of, minlength=bins)
    held = counts > 0
    sums = [np.bincount(of, weights=values, minlength=bins)[held] for values in (confidence, right)]
    return Calibration(sums[0] / counts[held], sums[1] / counts[held], counts[held])

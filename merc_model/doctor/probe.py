"""How much a linear model tells of the label: on held-out folds of what is trained on, and on test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus

_FOLDS = 4
_FEW = 100  # labelled utterances to learn from, below which a score says nothing
_FEW_TEST = 50
_FEW_VALUES = 30  # of a column that may be the label


@dataclass(frozen=True)
class Probe:
    """Recalls, averaged over classes.

    Attributes:
        folds: on held-out folds of the training and validation dialogues.
        test: on the test dialogues, or None where too few are labelled.
        error: standard error of the difference, about.
    """

    folds: float
    test: float | None
    error: float


def probe(corpus: Corpus, modality: str) -> Probe | None:
    """Ridge regression on the classes, from one modality; None where there is too little to learn from."""
    known = (corpus.labels != IGNORE_INDEX) & ~np.isnan(corpus.features[modality]).any(axis=1)
    test = corpus.rows(corpus.dialogues("test"))
    learnt = corpus.rows(np.flatnonzero(corpus.split != "test"))
    learnt, test = learnt[known[learnt]], test[known[test]]
    own = corpus.only(np.flatnonzero(corpus.split != "test")) if len(learnt) else None
    units = 0 if own is None else len(own.dialogue_ids if own.groups is None else np.unique(own.groups))
    if own is None or len(learnt) < _FEW or len(np.unique(corpus.labels[learnt])) < 2 or units < 2:
        return None
    inputs, labels = own.features[modality], own.labels
    usable = (labels != IGNORE_INDEX) & ~np.isnan(inputs).any(axis=1)
    predicted = np.full(len(labels), IGNORE_INDEX)
    for fold in own.folds(min(_FOLDS, units)):
        train, held = (fold.rows(fold.dialogues(split)) for split in ("train", "valid"))
        train, held = train[usable[train]], held[usable[held]]
        predicted[held] = _fit_predict(inputs[train], labels[train], inputs[held])
    folds = _recall(labels[usable], predicted[usable])
    if len(test) < _FEW_TEST:
        return Probe(folds, None, 0.0)
    rows = corpus.features[modality]
    on_test = _recall(corpus.labels[test], _fit_predict(rows[learnt], corpus.labels[learnt], rows[test]))
    least = np.unique(corpus.labels[test], return_counts=True)[1]
    error = float(np.sqrt((0.25 / least).sum()) / len(least))  # of a mean of recalls, each at most that of a coin
    return Probe(folds, on_test, error)


def label_columns(corpus: Corpus, modality: str) -> NDArray[np.int64]:
    """Columns of few values, each of which nearly always stands for one label; none where one label is nearly all."""
    known = (corpus.labels != IGNORE_INDEX) & ~np.isnan(corpus.features[modality]).any(axis=1)
    rows, labels = corpus.features[modality][known], corpus.labels[known]
    if len(labels) < _FEW or np.bincount(labels).max() > 0.9 * len(labels):
        return np.empty(0, np.int64)
    found = []
    for column in range(rows.shape[1]):
        values, index = np.unique(rows[:, column], return_inverse=True)
        if 1 < len(values) <= _FEW_VALUES:
            together = np.zeros((len(values), corpus.num_classes), np.int64)
            np.add.at(together, (index, labels), 1)
            if together.max(axis=1).sum() > 0.98 * len(labels):
                found.append(column)
    return np.array(found, np.int64)


def _fit_predict(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], others: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Classes of ``others``; rare classes weigh as much as common ones."""
    centre, spread = inputs.mean(axis=0, dtype=np.float64), inputs.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1.0

    def scaled(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        values = np.clip((rows - centre) / spread, -10, 10)
        return np.concatenate([values, np.ones((len(rows), 1))], axis=1)  # [N, D + 1]

    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = len(labels) / (len(classes) * counts[index])
    design, targets = scaled(inputs), np.eye(len(classes))[index]
    weighted = design * weights[:, None]
    gram = weighted.T @ design + design.shape[1] * np.eye(design.shape[1])
    chosen: NDArray[np.int64] = classes[(scaled(others) @ np.linalg.solve(gram, weighted.T @ targets)).argmax(axis=1)]
    return chosen


def _recall(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))

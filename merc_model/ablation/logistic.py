"""The simplest control: logistic regression on the features of an utterance and of its neighbours."""

from __future__ import annotations

import warnings
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus
from merc_model.encoders import Standardize
from merc_model.errors import UserError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

WINDOWS = (0, 1, 2, 4, 8)  # neighbours on each side
PENALTIES = (0.0001, 0.001, 0.01)  # scikit-learn's C: the inverse of the penalty
_FOLDS = 4


class LogisticBaseline:
    """Window and penalty are chosen on folds of the training dialogues, by weighted F1; then all of them are fitted.

    Features are standardised with the training rows; what is missing, or beyond the dialogue's ends, is 0.

    Args:
        corpus: its ``train`` dialogues are learnt from; the others are not read.

    Attributes:
        window: neighbours on each side that were chosen.
        penalty: C that was chosen.
        parameters: coefficients and intercepts.
    """

    def __init__(self, corpus: Corpus) -> None:
        train = corpus.only(corpus.dialogues("train"))
        self._standardize = {modality: Standardize(dim) for modality, dim in corpus.dims.items()}
        for modality, standardize in self._standardize.items():
            standardize.fit(torch.from_numpy(train.features[modality]))
        self.window, self.penalty = self._choose(train)
        self._model = _fitted(self._inputs(train, self.window), train.labels, self.penalty)
        self.parameters = int(self._model.coef_.size + self._model.intercept_.size)

    def predict(self, corpus: Corpus, dialogues: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class of every utterance of some dialogues."""
        rows = self._inputs(corpus, self.window)[corpus.rows(dialogues)]
        predicted: NDArray[np.int64] = self._model.predict(rows)
        return predicted

    def _choose(self, train: Corpus) -> tuple[int, float]:
        from sklearn.metrics import f1_score

        units = len(train.dialogue_ids if train.groups is None else np.unique(train.groups))
        if units < 2:
            return WINDOWS[1], PENALTIES[1]
        folds = train.folds(min(_FOLDS, units))
        known = train.labels != IGNORE_INDEX
        scores = {}
        for window, penalty in product(WINDOWS, PENALTIES):
            inputs, predicted = self._inputs(train, window), np.zeros_like(train.labels)
            for fold in folds:
                learnt, held = (fold.rows(fold.dialogues(split)) for split in ("train", "valid"))
                predicted[held] = _fitted(inputs[learnt], train.labels[learnt], penalty).predict(inputs[held])
            f1 = f1_score(train.labels[known], predicted[known], average="weighted", zero_division=0)
            scores[window, penalty] = float(f1)
        return max(scores, key=scores.__getitem__)

    def _inputs(self, corpus: Corpus, window: int) -> NDArray[np.float32]:
        """``(U, (2·window + 1)·D)``, the rows of the neighbours side by side."""
        standardized = []
        for modality, standardize in self._standardize.items():
            values = standardize(torch.from_numpy(corpus.features[modality]))
            standardized.append(values.masked_fill(values.isnan().any(dim=1, keepdim=True), 0).numpy())
        rows = np.concatenate(standardized, axis=1)
        dialogue = np.repeat(np.arange(len(corpus.dialogue_ids)), np.diff(corpus.offsets))
        own = np.arange(len(rows))
        parts = []
        for shift in range(-window, window + 1):
            other = np.clip(own + shift, 0, len(rows) - 1)
            same = (other == own + shift) & (dialogue[other] == dialogue)
            parts.append(np.where(same[:, None], rows[other], 0))
        return np.concatenate(parts, axis=1)


def _fitted(inputs: NDArray[np.float32], labels: NDArray[np.int64], penalty: float) -> LogisticRegression:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    known = labels != IGNORE_INDEX
    if len(np.unique(labels[known])) < 2:
        raise UserError("logistic regression: the dialogues to train on have utterances of one class only")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as close as 300 steps come
        return LogisticRegression(C=penalty, max_iter=300).fit(inputs[known], labels[known])

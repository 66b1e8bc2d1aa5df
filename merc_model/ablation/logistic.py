"""The simplest control: logistic regression on the features of an utterance and of what was said around it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX, TEACHER
from merc_model.data.batch import batches
from merc_model.data.corpus import Corpus
from merc_model.encoders import Features
from merc_model.errors import UserError
from merc_model.linear import around, fitted
from merc_model.training import fit_training_rows

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

WINDOWS = (0, 1, 2)  # neighbours on each side
PENALTIES = (0.0003, 0.001, 0.003, 0.01)  # scikit-learn's C: the inverse of the penalty
_FOLDS = 4
_BATCH_DIALOGUES = 16


class LogisticBaseline:
    """Window and penalty are chosen on folds of the training dialogues, by weighted F1; then all of them are fitted.

    It is given the features that the model's encoders see, standardised with the training rows, of the utterance and of
    its neighbours; and their weighted means over the other utterances of the same speaker, and over those of the other
    speakers. What is missing, or beyond the dialogue's ends, is 0.

    Args:
        corpus: its ``train`` dialogues are learnt from; the others are not read.
        causal: it is given nothing of what comes after an utterance.

    Attributes:
        window: neighbours on each side that were chosen.
        penalty: C that was chosen.
        parameters: coefficients and intercepts.
    """

    def __init__(self, corpus: Corpus, causal: bool = False) -> None:
        self.causal = causal
        train = corpus.only(corpus.dialogues("train"))
        self._features = {modality: Features(dim, modality != TEACHER) for modality, dim in corpus.dims.items()}
        for modality, features in self._features.items():
            fit_training_rows(features.standardize, train, modality)
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
        for window in WINDOWS:
            inputs = self._inputs(train, window)
            for penalty in PENALTIES:
                predicted = np.zeros_like(train.labels)
                for fold in folds:
                    learnt, held = (fold.rows(fold.dialogues(split)) for split in ("train", "valid"))
                    predicted[held] = _fitted(inputs[learnt], train.labels[learnt], penalty).predict(inputs[held])
                f1 = f1_score(train.labels[known], predicted[known], average="weighted", zero_division=0)
                scores[window, penalty] = float(f1)
        return max(scores, key=scores.__getitem__)

    def _inputs(self, corpus: Corpus, window: int) -> NDArray[np.float32]:
        """``(U, (2·window + 3)·D)``, ``(U, (window + 3)·D)`` if causal: own row, both means, the neighbours' rows."""
        own = self._around(corpus)
        dialogue = np.repeat(np.arange(len(corpus.dialogue_ids)), np.diff(corpus.offsets))
        rows, position = own[:, : own.shape[1] // 3], np.arange(len(own))
        parts = [own]
        for shift in (shift for shift in range(-window, 1 if self.causal else window + 1) if shift):
            other = np.clip(position + shift, 0, len(rows) - 1)
            same = (other == position + shift) & (dialogue[other] == dialogue)
            parts.append(np.where(same[:, None], rows[other], 0))
        return np.concatenate(parts, axis=1)

    @torch.no_grad()
    def _around(self, corpus: Corpus) -> NDArray[np.float32]:
        parts = [np.empty((0, 3 * sum(features.dim for features in self._features.values())), np.float32)]
        for batch in batches(corpus, np.arange(len(corpus.dialogue_ids)), _BATCH_DIALOGUES, torch.device("cpu")):
            batch = replace(batch, causal=self.causal)
            seen = {
                modality: features(batch.features[modality], batch.present[modality], batch.speakers, batch.visible)
                for modality, features in self._features.items()
            }
            parts.append(around(seen, batch)[batch.utterance_mask].numpy())
        return np.concatenate(parts)


def _fitted(inputs: NDArray[np.float32], labels: NDArray[np.int64], penalty: float) -> LogisticRegression:
    known = labels != IGNORE_INDEX
    if len(np.unique(labels[known])) < 2:
        raise UserError("logistic regression: the dialogues to train on have utterances of one class only")
    return fitted(inputs[known], labels[known], penalty)

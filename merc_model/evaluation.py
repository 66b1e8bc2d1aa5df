"""Predictions of the dialogues of a corpus, and the field's metrics of them.

scikit-learn is imported when the first metric is computed: it takes longer than torch, and most processes need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX
from merc_model.data.batch import batches
from merc_model.data.corpus import Corpus
from merc_model.data.outliers import refuse_outliers
from merc_model.encoders import Standardize
from merc_model.errors import UserError
from merc_model.model import MercModel

FUSED = "fused"
_BATCH_DIALOGUES = 16


@dataclass(frozen=True)
class Predictions:
    """U utterances, in the order of the dialogues asked for.

    Attributes:
        labels: ``(U,)``, -100 where unlabelled.
        probabilities: head → ``(U, C)``; the heads are ``fused`` and each modality's own.
        embeddings: ``(U, P)``, where the contrastive loss works.
    """

    labels: NDArray[np.int64]
    probabilities: dict[str, NDArray[np.float32]]
    embeddings: NDArray[np.float32]

    def metrics(self, label_names: Sequence[str], head: str = FUSED) -> dict[str, Any]:
        """The metrics of one head over the labelled utterances."""
        known = self.labels != IGNORE_INDEX
        return metrics(self.labels[known], self.probabilities[head][known].argmax(axis=1), label_names)


@torch.inference_mode()
def predict(model: MercModel, corpus: Corpus, dialogues: NDArray[np.int64], drop: Sequence[str] = ()) -> Predictions:
    """What the model says of some dialogues of a corpus, without the modalities in ``drop``.

    Raises:
        UserError: features or emotions other than those the model was trained on; an answer that is not finite.
    """
    check_features(model, corpus, dialogues, drop)
    model.eval()
    device = model.prototypes.device
    labels: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    embeddings: list[NDArray[np.float32]] = []
    probabilities: dict[str, list[NDArray[np.float32]]] = {head: [] for head in (FUSED, *model.heads)}
    for batch in batches(corpus, dialogues, _BATCH_DIALOGUES, device):
        for modality in drop:
            batch = batch.without(modality)
        output = model(batch)
        real = batch.utterance_mask
        labels.append(batch.labels[real].cpu().numpy())
        embeddings.append(output.embeddings[real].float().cpu().numpy())
        heads = {FUSED: output.logits, **output.modality_logits}
        if not all(bool(values[real].isfinite().all()) for values in (output.embeddings, *heads.values())):
            raise UserError(
                f"corpus {corpus.name}: the model's answer is not finite; its weights are damaged, or its training"
                " diverged: train it anew, with a lower learning_rate"
            )
        for head, logits in heads.items():
            probabilities[head].append(logits[real].float().softmax(dim=-1).cpu().numpy())
    return Predictions(
        np.concatenate(labels),
        {head: np.concatenate(parts) for head, parts in probabilities.items()},
        np.concatenate(embeddings),
    )


def answer(number: int, speaker: int, probabilities: NDArray[np.float32], label_names: Sequence[str]) -> dict[str, Any]:
    """The row of an utterance: its number, speaker, emotion and the probability of each emotion."""
    rounded = probabilities.astype(np.float64).round(6).tolist()
    return {
        "utterance": number,
        "speaker": speaker,
        "emotion": label_names[int(probabilities.argmax())],
        "probabilities": dict(zip(label_names, rounded, strict=True)),
    }


def metrics(labels: NDArray[np.int64], predicted: NDArray[np.int64], label_names: Sequence[str]) -> dict[str, Any]:
    """Weighted and macro F1, accuracy, unweighted accuracy (UAR), F1 a class and the confusion matrix.

    Macro F1 and UAR are means over the classes that occur in ``labels``.
    """
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    classes = np.arange(len(label_names))
    occurring = np.unique(labels)
    f1 = f1_score(labels, predicted, labels=classes, average=None, zero_division=0)
    averages = {"labels": occurring, "average": "macro", "zero_division": 0}
    return {
        "weighted_f1": float(f1_score(labels, predicted, average="weighted", zero_division=0)),
        "macro_f1": float(f1_score(labels, predicted, **averages)),
        "accuracy": float(accuracy_score(labels, predicted)),
        "uar": float(recall_score(labels, predicted, **averages)),
        "f1": {str(name): float(score) for name, score in zip(label_names, f1, strict=True)},
        "confusion": np.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
        .reshape(len(classes), len(classes))
        .tolist(),
        "utterances": len(labels),
    }


def check_features(model: MercModel, corpus: Corpus, dialogues: NDArray[np.int64], drop: Sequence[str] = ()) -> None:
    """A UserError unless these dialogues of a corpus, without ``drop``, are such as the model was trained on."""
    for modality, dim in corpus.dims.items():
        expected = model.dims.get(modality)
        if expected is None:
            known = ", ".join(model.modalities)
            raise UserError(f"corpus {corpus.name}: {modality} was never seen in training (the model knows {known})")
        if dim != expected:
            raise UserError(f"corpus {corpus.name}: {modality}: expected {expected} features a row, got {dim}")
    if corpus.label_names.tolist() != model.label_names:
        raise UserError(
            f"corpus {corpus.name}: label_names: expected {', '.join(model.label_names)},"
            f" got {', '.join(corpus.label_names)}"
        )
    for modality in drop:
        if modality not in corpus.features:
            raise UserError(f"cannot drop {modality!r}: the corpus has {', '.join(corpus.features)}")
    if set(corpus.features) <= set(drop):
        raise UserError("cannot drop every modality of the corpus: nothing would be left to predict from")
    for modality in corpus.features:
        if modality not in drop:
            check_rows(model.standardize(modality), corpus, modality, corpus.rows(dialogues))


def check_rows(standardize: Standardize, corpus: Corpus, modality: str, rows: NDArray[np.int64]) -> None:
    """A UserError naming a value of these rows that is absurdly far from the training rows."""
    mean, sd = (values.double().cpu().numpy() for values in (standardize.mean, standardize.sd))
    refuse_outliers(corpus, modality, rows, mean, sd)

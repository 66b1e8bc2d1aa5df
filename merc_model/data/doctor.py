"""What is wrong with the features of a corpus: findings, worst first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merc_model.data.corpus import SPLITS, Corpus

_SHARE = 0.05  # of the rows, beyond which duplicates and zeros mislead
_JUMP = 10.0  # a scale between splits


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        misleads: whether a model trained on it would mislead.
        text: a line.
    """

    misleads: bool
    text: str


def examine(corpus: Corpus) -> list[Finding]:
    """The findings on a corpus, those that mislead first."""
    found = [finding for modality in corpus.features for finding in _modality(corpus, modality)]
    return sorted([*found, *_classes(corpus)], key=lambda finding: not finding.misleads)


def _modality(corpus: Corpus, modality: str) -> Iterator[Finding]:
    values = corpus.features[modality]
    known = np.flatnonzero(~np.isnan(values).any(axis=1))
    rows, lengths = values[known], np.diff(corpus.offsets)
    dialogues = np.repeat(np.arange(len(lengths)), lengths)[known]
    splits = corpus.split[dialogues]
    constant = np.ptp(rows, axis=0) == 0
    if constant.any():
        zero = (rows == 0).all(axis=0).sum()
        yield Finding(
            bool(constant.all()), f"{modality}: {constant.sum()} of {len(constant)} columns never change ({zero} are 0)"
        )
    empty = ~rows.any(axis=1)
    if empty.any():
        many = bool(empty.mean() > _SHARE)
        yield Finding(many, f"{modality}: {empty.sum()} of {len(rows)} rows are all zero; mark a missing row with NaN")
    _, same = np.unique(rows, axis=0, return_inverse=True)
    same = same.reshape(-1)
    for what, of in (("splits", splits), ("dialogues", dialogues)):
        shared = _shared(same, of) & ~empty
        if shared.any():
            many = modality != "text" and bool(shared.mean() > _SHARE)  # the same words are the same text
            yield Finding(
                many, f"{modality}: {shared.sum()} of {len(rows)} rows stand in several {what}, number for number"
            )
    scales = {split: float(rows[splits == split].std()) for split in SPLITS if (splits == split).sum() > 1}
    least, most = (min(scales.values()), max(scales.values())) if scales else (0.0, 0.0)
    if most > _JUMP * least:
        listed = ", ".join(f"{split} {scale:.3g}" for split, scale in scales.items())
        yield Finding(True, f"{modality}: the scale jumps between splits (sd: {listed})")


def _shared(same: NDArray[np.int64], of: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Rows whose twins stand in several of the places ``of``."""
    places = np.unique(np.stack([same, np.unique(of, return_inverse=True)[1].reshape(-1)]), axis=1)
    shared: NDArray[np.bool_] = np.bincount(places[0])[same] > 1
    return shared


def _classes(corpus: Corpus) -> Iterator[Finding]:
    for split in SPLITS:
        dialogues = corpus.dialogues(split)
        if len(dialogues):
            counts = corpus.class_counts(dialogues)
            lacking = corpus.label_names[counts == 0]
            if len(lacking):
                yield Finding(split == "train", f"labels: {split} has no {', '.join(lacking)}")
    if not len(corpus.dialogues("test")):
        yield Finding(False, "split: no test dialogue")

"""Findings on a corpus, worst first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merc_model.data.corpus import SPLITS, Corpus
from merc_model.data.published import DATASETS, differences
from merc_model.doctor.probe import Probe, label_columns, probe

_SHARE = 0.05  # of rows, beyond which a fault misleads
_JUMPED = 0.1  # of the columns, likewise
_JUMP = 10.0  # between the spreads of a column in two splits
_SHIFT = 5.0  # of a column's mean between splits, in spreads of train
_FEW = 10  # rows of a split that tell no spread
_SAME = 3  # utterances of a dialogue that cannot be the same by chance
_APART = 0.15  # between scores of probes that should be alike


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        misleads: whether a model trained on it would mislead.
        share: of the rows or columns that it concerns.
        text: a line.
    """

    misleads: bool
    share: float
    text: str


def examine(corpus: Corpus) -> list[Finding]:
    """The findings on a corpus, those that mislead first."""
    found = [finding for modality in corpus.features for finding in _features(corpus, modality)]
    found += [*_labels(corpus), *_dialogues(corpus), *_people(corpus), *_leaks(corpus)]
    return sorted(found, key=lambda finding: (not finding.misleads, -finding.share))


def _features(corpus: Corpus, modality: str) -> Iterator[Finding]:
    values = corpus.features[modality]
    known = np.flatnonzero(~np.isnan(values).any(axis=1))
    rows, lengths = values[known], np.diff(corpus.offsets)
    dialogues = np.repeat(np.arange(len(lengths)), lengths)[known]
    splits = corpus.split[dialogues]
    constant = np.ptp(rows, axis=0) == 0
    if constant.any():
        zero, all_of_it = (rows == 0).all(axis=0).sum(), bool(constant.all())
        what = f"{constant.sum()} of {len(constant)} columns never change ({zero} are 0)"
        yield Finding(all_of_it, constant.mean(), f"{modality}: {what}")
    empty = ~rows.any(axis=1)
    if empty.any():
        share = empty.mean()
        what = f"{empty.sum()} of {len(rows)} rows are all zero; mark a missing row with NaN"
        yield Finding(bool(share > _SHARE), share, f"{modality}: {what}")
    _, same = np.unique(rows, axis=0, return_inverse=True)
    for what, of in (("splits", splits), ("dialogues", dialogues)):
        shared = _shared(same.reshape(-1), of) & ~empty
        if shared.any():
            share = shared.mean()
            many = modality != "text" and bool(share > _SHARE)  # the same words are the same text
            text = f"{modality}: {shared.sum()} of {len(rows)} rows stand in several {what}, number for number"
            yield Finding(many, share, text)
    yield from _jumps(modality, rows, splits)


def _shared(same: NDArray[np.int64], of: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Rows whose twins stand in several of the places ``of``."""
    places = np.unique(np.stack([same, np.unique(of, return_inverse=True)[1].reshape(-1)]), axis=1)
    shared: NDArray[np.bool_] = np.bincount(places[0])[same] > 1
    return shared


def _jumps(modality: str, rows: NDArray[np.float32], splits: NDArray[np.str_]) -> Iterator[Finding]:
    train = rows[splits == "train"].astype(np.float64)
    if len(train) < _FEW:
        return
    for split in SPLITS[1:]:
        other = rows[splits == split].astype(np.float64)
        if len(other) < _FEW:
            continue
        spread = np.stack([train.std(axis=0), other.std(axis=0)])
        far = np.abs(other.mean(axis=0) - train.mean(axis=0)) > _SHIFT * spread[0]
        jumps = (spread.max(axis=0) > _JUMP * spread.min(axis=0)) | (far & (spread[0] > 0))
        if jumps.any():
            worst = np.flatnonzero(jumps)[0]
            of = ", ".join(
                f"{name} {side[:, worst].mean():.3g} ± {side[:, worst].std():.3g}"
                for name, side in (("train", train), (split, other))
            )
            what = f"the scale jumps between train and {split} in {jumps.sum()} of {len(jumps)} columns"
            yield Finding(bool(jumps.mean() > _JUMPED), jumps.mean(), f"{modality}: {what} (column {worst}: {of})")


def _labels(corpus: Corpus) -> Iterator[Finding]:
    for split in SPLITS:
        dialogues = corpus.dialogues(split)
        if len(dialogues):
            counts = corpus.class_counts(dialogues)
            lacking = corpus.label_names[counts == 0]
            if len(lacking):
                text = f"labels: {split} has no {', '.join(lacking)}"
                yield Finding(split == "train", len(lacking) / corpus.num_classes, text)
    if not len(corpus.dialogues("test")):
        yield Finding(False, 1.0, "split: no test dialogue")
    for name, published in DATASETS.items():
        if set(corpus.label_names.tolist()) == set(published.label_names):
            for difference in differences(corpus, published):
                if difference.splits == "test" and not len(corpus.dialogues("test")):
                    continue
                what = "not as published"
                if difference.other is not None:
                    what = f"as published for {difference.other}"
                elif difference.exchanged:
                    what = "as published, but for other classes"
                misleads = difference.exchanged or difference.other is not None
                yield Finding(misleads, 0.0, f"labels: {difference.splits} of {name}: {what}: {difference.text}")


def _dialogues(corpus: Corpus) -> Iterator[Finding]:
    """Dialogues that are the same under two ids."""
    seen: dict[bytes, int] = {}
    for number, (start, end) in enumerate(zip(corpus.offsets, corpus.offsets[1:], strict=False)):
        if end - start < _SAME:
            continue
        rows = [np.nan_to_num(values[start:end]).tobytes() for values in corpus.features.values()]
        digest = hashlib.sha256(b"".join(rows)).digest()
        other = seen.setdefault(digest, number)
        if other != number:
            places = [f"{str(corpus.dialogue_ids[d])!r} of {corpus.split[d]}" for d in (other, number)]
            apart = bool(corpus.split[other] != corpus.split[number])
            yield Finding(apart, 0.0, f"dialogues: {' and '.join(places)} have the same features throughout")


def _people(corpus: Corpus) -> Iterator[Finding]:
    """Who speaks both where a model learns and where it is tested."""
    test = corpus.dialogues("test")
    learnt = np.setdiff1d(np.arange(len(corpus.split)), test)
    if corpus.groups is not None:
        kind, both = "groups", set(corpus.groups[test]) & set(corpus.groups[learnt])
    elif corpus.speaker_names is not None:
        names = corpus.speaker_names
        kind, both = "speakers", (set(names[corpus.rows(test)]) & set(names[corpus.rows(learnt)])) - {""}
    else:
        return
    if both:
        few = ", ".join(sorted(map(str, both))[:5]) + (", …" if len(both) > 5 else "")
        text = f"{kind}: {len(both)} of the test dialogues are in training too ({few}); strangers are harder"
        yield Finding(False, 0.0, text)


def _leaks(corpus: Corpus) -> Iterator[Finding]:
    for modality in corpus.features:
        columns = label_columns(corpus, modality)
        if len(columns):
            listed = ", ".join(map(str, columns[:5]))
            yield Finding(True, 1.0, f"{modality}: column {listed} alone tells the label: is it the label?")
    probes = {modality: probe(corpus, modality) for modality in corpus.features}
    known: dict[str, Probe] = {modality: result for modality, result in probes.items() if result is not None}
    for modality, result in known.items():
        others = {other: each.folds for other, each in known.items() if other != modality}
        best = max(others, key=others.__getitem__, default=None)
        score = f"{modality}: a linear probe tells the label with a recall of {result.folds:.2f} on held-out folds"
        if result.test is not None and result.folds - result.test > max(_APART, 3 * result.error):
            text = f"{score}, {result.test:.2f} on test: were the features fitted to the training labels?"
            yield Finding(True, 1.0, text)
        elif result.folds > 0.9 and best is not None and result.folds - others[best] > _APART:
            text = f"{score}, from {best} {others[best]:.2f}: do the features hold the label?"
            yield Finding(True, 1.0, text)
        elif result.folds > 0.97:
            yield Finding(False, 1.0, f"{score}: do the features hold the label?")

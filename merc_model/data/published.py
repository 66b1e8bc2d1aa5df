"""IEMOCAP and MELD as published: their labels, and how often each stands in each split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from merc_model.data.corpus import Corpus


@dataclass(frozen=True)
class Published:
    """A data set: its labels in the files' order; of each split, dialogues and class counts."""

    label_names: tuple[str, ...]
    splits: dict[str, tuple[int, tuple[int, ...]]]


DATASETS = {
    "iemocap": Published(
        ("happy", "sad", "neutral", "angry", "excited", "frustrated"),
        {"train": (120, (504, 839, 1324, 933, 742, 1468)), "test": (31, (144, 245, 384, 170, 299, 381))},
    ),
    "meld": Published(
        ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
        {
            "train": (1038, (4710, 1205, 268, 683, 1743, 271, 1109)),
            "valid": (114, (470, 150, 40, 111, 163, 22, 153)),
            "test": (280, (1256, 281, 50, 208, 402, 68, 345)),
        },
    ),
}


@dataclass(frozen=True)
class Difference:
    """A part of a corpus that is not as published.

    Attributes:
        splits: that were counted together, as validation is not always marked.
        exchanged: the counts are the published ones, of other classes.
        other: the split that has these counts as published, or None.
        text: a line.
    """

    splits: str
    exchanged: bool
    other: str | None
    text: str


def differences(corpus: Corpus, published: Published) -> Iterator[Difference]:
    """What is not as published; the corpus has the same labels, in any order."""
    order = [corpus.label_names.tolist().index(name) for name in published.label_names]
    marked = len(corpus.dialogues("valid")) > 0 and "valid" in published.splits
    for group in [["train"], ["valid"], ["test"]] if marked else [["train", "valid"], ["test"]]:
        dialogues = np.concatenate([corpus.dialogues(split) for split in group])
        found = len(dialogues), tuple(corpus.class_counts(dialogues)[order].tolist())
        accepted = {_together(published, group), _together(published, group[:1])}
        if found not in accepted:
            expected = " or ".join(_describe(published, *one) for one in sorted(accepted))
            yield Difference(
                " and ".join(group),
                any(sorted(found[1]) == sorted(counts) and found[1] != counts for _, counts in accepted),
                next((split for split, one in published.splits.items() if one == found), None),
                f"expected {expected}; found {_describe(published, *found)}",
            )


def _together(published: Published, splits: Sequence[str]) -> tuple[int, tuple[int, ...]]:
    known = [published.splits[split] for split in splits if split in published.splits]
    return sum(d for d, _ in known), tuple(map(sum, zip(*(counts for _, counts in known), strict=True)))


def _describe(published: Published, dialogues: int, counts: Sequence[int]) -> str:
    classes = "/".join(map(str, counts))
    return f"{dialogues} dialogues, {sum(counts)} utterances ({classes} of {'/'.join(published.label_names)})"

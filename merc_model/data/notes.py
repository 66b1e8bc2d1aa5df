"""What a user should know of a corpus before its figures: lines to print, of things that are no errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from merc_model.data.arrays import worst_column
from merc_model.data.corpus import SPLITS, Corpus


def missing_rows(corpus: Corpus, dialogues: NDArray[np.int64]) -> list[str]:
    """A line for each modality that some utterances of ``dialogues`` lack."""
    lines = []
    for modality, values in corpus.features.items():
        counts = []
        for split in SPLITS:
            rows = corpus.rows(np.intersect1d(corpus.dialogues(split), dialogues))
            missing = np.isnan(values[rows]).any(axis=1).sum()
            of_split = f" of {split}" if len(set(corpus.split)) > 1 else ""
            counts += [f"{missing} of {len(rows)} rows{of_split}"] if missing else []
        if counts:
            why = worst_column(values[corpus.rows(dialogues)])
            lines.append(f"{modality} is missing in {', '.join(counts)}{why}")
    return lines


def validation_cut(cut: Corpus) -> str:
    """What of the training dialogues became the validation set, and which classes one side lacks."""
    sides = {split: cut.class_counts(cut.dialogues(split)) for split in ("train", "valid")}
    dialogues = {split: len(cut.dialogues(split)) for split in sides}
    line = (
        f"validation set: {dialogues['valid']} of {sum(dialogues.values())} training dialogues were cut off,"
        f" with {sides['valid'].sum()} of {sum(counts.sum() for counts in sides.values())} labelled utterances"
    )
    known = np.sum(list(sides.values()), axis=0) > 0
    for split, counts in sides.items():
        lacking = cut.label_names[known & (counts == 0)]
        line += f"; no {' or '.join(lacking)} is left in {split}" if len(lacking) else ""
    return line

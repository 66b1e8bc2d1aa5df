"""Values so far from the training rows that they can only be a fault: a wrong unit, byte order or file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from merc_model.data.corpus import Corpus
from merc_model.errors import UserError

LIMIT = 1e6  # spreads off the centre; in the field's features a value is at most a few hundred off


def refuse_outliers(
    corpus: Corpus,
    modality: str,
    rows: NDArray[np.int64],
    centre: NDArray[np.float64],
    spread: NDArray[np.float64],
) -> None:
    """A UserError naming the first of ``rows`` with a value more than ``LIMIT`` spreads off its column's centre."""
    values = corpus.features[modality][rows]
    with np.errstate(over="ignore", invalid="ignore"):  # a bound beyond float32 is infinite, and no bound
        low, high = ((centre + side * LIMIT * spread).astype(np.float32) for side in (-1, 1))
    far = (values < low) | (values > high)
    places = np.argwhere(far)
    if len(places):
        row, column = places[0]
        others = far.any(axis=1).sum() - 1
        raise UserError(
            f"corpus {corpus.name}: {modality}, {corpus.place(rows[row])}: {values[row, column]:g} in column {column},"
            f" where the training rows are about {centre[column]:g} ± {spread[column]:g}"
            f"{f' (and so in {others} more rows)' if others else ''};"
            " mend it, or mark the row as missing with NaN"
        )


def typical(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each column the median and what nine in ten of the values off it stay within; infinite where all are on it.

    Other than a mean and sd, these do not move with one absurd value.
    """
    centre = np.median(rows, axis=0).astype(np.float64)
    spread = np.full(rows.shape[1], np.inf)
    for column in range(rows.shape[1]):
        distance = np.abs(rows[:, column] - centre[column])
        off = distance[distance > 0]
        if len(off):
            spread[column] = np.quantile(off, 0.9)
    return centre, spread

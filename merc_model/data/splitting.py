"""Cutting and dealing units that stay whole (a dialogue, or a group of dialogues) so that the parts look alike.

A small part is noisy enough without a skew: of 200 seeded draws, the one is taken whose parts have class shares closest
to those of the whole, and sizes closest to what was asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DRAWS = 200


def cut(counts: NDArray[np.int64], sizes: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The units to cut off: the fewest of a draw that hold ``size`` dialogues, never all.

    A draw that would leave a side without labels has one unit exchanged, where that helps; one that takes every
    utterance of a class is the last choice.

    Args:
        counts: ``(units, C)`` labelled utterances of each class.
        sizes: ``(units,)`` dialogues of each unit.
        size: dialogues to cut off.
    """
    generator = np.random.default_rng(0)
    labelled, whole = np.asarray(counts.sum(axis=1) > 0), counts.sum(axis=0)

    def draw() -> NDArray[np.int64]:
        order = generator.permutation(len(sizes))
        enough = int(np.searchsorted(np.cumsum(sizes[order]), size)) + 1
        taken = min(enough, len(sizes) - 1)
        known = np.flatnonzero(labelled[order])
        if len(known) and known[-1] < taken:  # none would be left
            order[[known[-1], taken]] = order[[taken, known[-1]]]
        elif len(known) > 1 and known[0] >= taken:  # none would be taken
            order[[0, known[0]]] = order[[known[0], 0]]
        return order[:taken]

    def skew(taken: NDArray[np.int64]) -> tuple[int, float]:
        cut_off = counts[taken].sum(axis=0)
        lost = int(np.count_nonzero((whole > 0) & (cut_off == whole)))
        return lost, _skew(cut_off, whole) + abs(float(sizes[taken].sum()) / size - 1)

    return min([draw() for _ in range(_DRAWS)], key=skew)


def deal(counts: NDArray[np.int64], sizes: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """``(units,)`` the part each unit goes to; parts are numbered by their first unit.

    Args:
        counts: ``(units, C)`` labelled utterances of each class.
        sizes: ``(units,)`` utterances of each unit.
        parts: how many, at most as many as units.
    """
    generator = np.random.default_rng(0)

    def draw() -> NDArray[np.int64]:
        part, load = np.empty(len(sizes), np.int64), np.zeros(parts)
        for unit in generator.permutation(len(sizes)):
            part[unit] = load.argmin()
            load[part[unit]] += sizes[unit]
        return part

    def skew(part: NDArray[np.int64]) -> float:
        members = [part == number for number in range(parts)]
        load = np.array([sizes[member].sum() for member in members], dtype=float)
        shares = [_skew(counts[member].sum(axis=0), counts.sum(axis=0)) for member in members]
        return float(np.mean(shares) + load.std() / load.mean())

    best = min([draw() for _ in range(_DRAWS)], key=skew)
    _, first, inverse = np.unique(best, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _skew(counts: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
    """How far the class shares of a part are from those of the whole: 0 alike, 2 nothing in common."""
    return float(np.abs(counts / max(counts.sum(), 1) - whole / max(whole.sum(), 1)).sum())

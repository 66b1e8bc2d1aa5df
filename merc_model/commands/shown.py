"""What commands print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from merc_model.data.corpus import Corpus

MADE_UP = "synthetic data: the figures say that the software works, nothing about people"


def note(corpus: Corpus, lines: Sequence[str]) -> None:
    """Say something of a corpus, on the standard error."""
    for line in lines:
        print(f"{corpus.name}: {line}", file=sys.stderr)


def print_metrics(metrics: dict[str, Any]) -> None:
    """Averages, and F1 of each class."""
    for name in ("weighted_f1", "macro_f1", "accuracy", "uar"):
        print(f"{name:>16}  {metrics[name]:.4f}")
    for label, score in metrics["f1"].items():
        print(f"{'f1 ' + label:>16}  {score:.4f}")
    print(f"{'utterances':>16}  {metrics['utterances']}")

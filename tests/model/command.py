"""What the tests of the command line share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.cli import main
from tests.model.small import small_corpus

SMALL = ["--set", "hidden_dim=16", "heads=2", "layers=1", "projection_dim=8", "epochs=2", "batch_dialogues=4"]

PICTURES = ["confusion.png", "curves.png", "embeddings.png"]


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must fail."""
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("merc: error: ")
    assert line.count("\n") == 1
    assert "Traceback" not in line
    return line


def conversation(path: Path) -> dict[str, Any]:
    corpus = small_corpus()
    features = {modality: rows[:6].astype(float) for modality, rows in corpus.features.items()}
    features["audio"][2] = np.nan
    np.savez(path.with_suffix(".npz"), **features, speakers=np.array([3, 3, 9, 3, 9, 9]))
    values: dict[str, Any] = {
        modality: [None if np.isnan(row).any() else row.tolist() for row in rows] for modality, rows in features.items()
    }
    path.with_suffix(".json").write_text(json.dumps({**values, "speakers": ["Ann", "Ann", "Bob", "Ann", "Bob", "Bob"]}))
    return values

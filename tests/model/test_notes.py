from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus
from merc_model.data.notes import missing_rows, validation_cut
from tests.model.small import small_corpus

SMALL = ["--set", "hidden_dim=16", "heads=2", "layers=1", "projection_dim=8", "epochs=1", "batch_dialogues=4"]


def gappy() -> Corpus:
    """The small corpus without validation set and visual, two labelled dialogues; audio's column 3 mostly NaN."""
    corpus = small_corpus()
    audio = np.nan_to_num(corpus.features["audio"])
    audio[corpus.offsets[2] :, 3] = np.nan
    labels = np.where(np.arange(len(corpus.labels)) < corpus.offsets[2], corpus.labels, IGNORE_INDEX)
    labels[corpus.rows(corpus.dialogues("test"))] = 0
    return replace(
        corpus,
        features={"text": corpus.features["text"], "audio": audio},
        labels=labels,
        split=np.where(corpus.split == "test", "test", "train"),
    )


def test_missing_rows_are_counted_and_the_column_is_named() -> None:
    corpus = gappy()
    everything = np.arange(len(corpus.split))
    train, test = (len(corpus.rows(corpus.dialogues(split))) for split in ("train", "test"))
    first = corpus.offsets[2]
    (line,) = missing_rows(corpus, everything)
    counts = f"{train - first} of {train} rows of train, {test} of {test} rows of test"
    assert line == (
        f"audio is missing in {counts} (column 3 is NaN in {train + test - first} rows that hold other values)"
    )
    assert missing_rows(corpus, everything[:1]) == []
    audio = np.full_like(corpus.features["audio"], np.nan)
    audio[0] = 0
    whole = replace(corpus, features={"audio": audio}, split=np.full(len(corpus.split), "test"))
    assert missing_rows(whole, everything) == [f"audio is missing in {len(audio) - 1} of {len(audio)} rows"]


def test_the_cut_is_told() -> None:
    line = validation_cut(gappy().with_validation(0.15))
    assert line.startswith("validation set: 2 of 12 training dialogues were cut off, with ")
    sparse = replace(small_corpus(), labels=np.where(np.arange(len(small_corpus().labels)) < 2, [0], IGNORE_INDEX))
    assert validation_cut(sparse).endswith("with 0 of 2 labelled utterances; no calm is left in valid")


def test_train_and_evaluate_say_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gappy().save(tmp_path / "gappy.npz")
    run = str(tmp_path / "run")
    assert main(["train", "--data", str(tmp_path / "gappy.npz"), *SMALL, "select_on=valid", "--out", run]) == 0
    said = capsys.readouterr().err
    assert "gappy: audio is missing in " in said
    assert "validation set: 2 of 12 training dialogues were cut off" in said
    assert main(["evaluate", run]) == 0
    assert "rows of test (column 3 is NaN" in capsys.readouterr().err
    np.savez(tmp_path / "talk.npz", text=gappy().features["text"][:4])
    assert main(["predict", run, str(tmp_path / "talk.npz"), "--out", str(tmp_path / "said.csv")]) == 0
    assert capsys.readouterr().err.startswith("talk: has no audio; predicted without\n")
    (tmp_path / "said.csv").unlink()
    np.savez(tmp_path / "talk.npz", text=gappy().features["text"][:4], audio=[[np.nan, 1, 2, 3, 4]] * 4)
    assert main(["predict", run, str(tmp_path / "talk.npz"), "--out", str(tmp_path / "said.csv")]) == 0
    said = capsys.readouterr().err
    assert "talk: audio: every row has a NaN (column 0 is NaN in 4 rows that hold other values)\n" in said
    assert "talk: has no audio; predicted without" in said

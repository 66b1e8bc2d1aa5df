from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.data.doctor import examine
from tests.model.small import small_corpus


def test_a_sound_corpus_has_no_finding() -> None:
    assert examine(small_corpus()) == []


def test_each_fault_is_found() -> None:
    corpus = small_corpus()
    visual = corpus.features["visual"].copy()
    visual[:, 1] = 0
    visual[corpus.rows(corpus.dialogues("train"))[:12]] = 0
    audio = corpus.features["audio"].copy()
    audio[corpus.rows(corpus.dialogues("test"))] *= 1000
    text = corpus.features["text"].copy()
    test, train = (corpus.rows(corpus.dialogues(split)) for split in ("test", "train"))
    text[test] = text[train[: len(test)]]
    found = examine(replace(corpus, features={"text": text, "audio": audio, "visual": visual}))
    lines = "\n".join(finding.text for finding in found)
    for words in ("1 of 6 columns never change", "rows are all zero", "in several splits", "the scale jumps"):
        assert words in lines
    assert [finding.misleads for finding in found] == sorted((f.misleads for f in found), reverse=True)


def test_the_exit_code_says_whether_it_misleads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = small_corpus()
    corpus.save(tmp_path / "good.npz")
    assert main(["doctor", str(tmp_path / "good.npz")]) == 0
    replace(corpus, features={"text": np.zeros_like(corpus.features["text"])}).save(tmp_path / "bad.npz")
    assert main(["doctor", str(tmp_path / "bad.npz")]) == 1
    assert "misleads: text: 8 of 8 columns never change" in capsys.readouterr().out

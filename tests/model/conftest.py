"""A corpus file and a finished run for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from merc_model.cli import main
from tests.model.command import SMALL
from tests.model.small import small_corpus


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "small.npz"
    small_corpus().save(path)
    return path


@pytest.fixture(scope="module")
def finished(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", "--data", str(corpus_path), *SMALL, "--out", str(folder)]) == 0
    return folder

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from merc_model.cli import main
from merc_model.data.batch import collate
from merc_model.ranks import Ranks
from tests.model.command import PICTURES, SMALL
from tests.model.small import small_corpus

SETTINGS = [*SMALL, "epochs=12", "dropout=0", "feature_dropout=0", "modality_dropout=0.2"]
SCRIPT = Path(__file__).with_name("training_process.py")


def started(folder: Path, *arguments: str, ranks: int = 2) -> subprocess.Popen[str]:
    """Torchrun, on its way."""
    options = ["--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(SCRIPT), "train", *arguments]
    environment = os.environ | {"MERC_TEST_FOLDER": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def lines_of_merc(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("merc: ")]


def finished(folder: Path, *arguments: str) -> str:
    """What several processes printed that trained to the end."""
    run = started(folder, *arguments)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return out


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    small_corpus().save(tmp_path / "corpus.npz")
    return ["--data", str(tmp_path / "corpus.npz"), *SETTINGS]


def test_several_processes_train_as_one(settings: list[str], tmp_path: Path) -> None:
    alone, whole = tmp_path / "alone", tmp_path / "whole"
    assert main(["train", *settings, "--out", str(alone)]) == 0
    assert finished(tmp_path, *settings, "--out", str(whole)).count("report: ") == 1
    assert all((whole / name).exists() for name in PICTURES)
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (alone, whole))
    for split in ("test", "valid"):
        assert one[split]["confusion"] == two[split]["confusion"]
    rows = [list(map(json.loads, (f / "history.jsonl").read_text().splitlines())) for f in (alone, whole)]
    for here, there in zip(*rows, strict=True):
        assert {k: v for k, v in there.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in here.items() if k != "seconds"}, rel=1e-4
        )


@pytest.mark.full
def test_several_processes_go_on_where_one_was_killed(settings: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finished(tmp_path, *settings, "--out", str(whole))
    run = started(tmp_path, *settings, "--out", str(broken))
    while not (broken / "resume.pt").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    os.kill(int((tmp_path / "rank-1").read_text()), signal.SIGKILL)
    _, err = run.communicate(timeout=300)
    assert run.returncode != 0
    assert lines_of_merc(err) == [
        "merc: error: another process of the training has ended; start all again with --resume"
    ]
    assert not (broken / "metrics.json").exists()

    finished(tmp_path, *settings, "--out", str(broken), "--resume")
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.full
def test_several_processes_refuse_a_folder_that_exists(settings: list[str], tmp_path: Path) -> None:
    arguments = [*settings, "--out", str(tmp_path / "run")]
    assert main(["train", *arguments]) == 0
    run = started(tmp_path, *arguments)
    _, err = run.communicate(timeout=300)
    assert run.returncode != 0
    there = f"merc: error: {tmp_path / 'run'} exists; go on in it with --resume, or give another --out"
    assert lines_of_merc(err) == [there]


def test_every_dialogue_is_one_ranks() -> None:
    corpus = small_corpus()
    batch = collate(corpus, corpus.dialogues("train")[:5])
    parts = [Ranks(rank, 3).part(batch) for rank in range(3)]
    assert all(len(part.labels) == 2 for part in parts)
    labels = torch.cat([part.labels for part in parts])
    assert torch.equal(labels[:5], batch.labels)
    assert (labels[5] == -100).all()
    assert torch.equal(torch.cat([part.features["text"] for part in parts])[:5], batch.features["text"])
    assert Ranks().part(batch) is batch

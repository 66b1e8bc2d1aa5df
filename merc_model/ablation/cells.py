"""Every row trained with every seed, on every fold: one file each, written whole, so that a killed run goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from merc_model.ablation.logistic import LogisticBaseline
from merc_model.ablation.processes import outcomes
from merc_model.ablation.rows import LOGISTIC, Row, configuration
from merc_model.checkpoint import environment
from merc_model.config import Config
from merc_model.data.corpus import Corpus
from merc_model.encoders import Standardize
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, check_rows, predict
from merc_model.files import write_whole
from merc_model.training import Training, fit_training_rows

FORMAT = 1
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Part:
    """What is trained on, and what is predicted afterwards, once: the test set, or a fold's validation set.

    Attributes:
        training: with ``train`` and ``valid`` dialogues only.
        corpus: which has the dialogues to predict.
        dialogues: of it.
    """

    training: Corpus
    corpus: Corpus
    dialogues: NDArray[np.int64]


@dataclass(frozen=True)
class Ablation:
    """What is asked.

    Attributes:
        corpus: all of it.
        config: of the row ``full``.
        rows: of the table.
        seeds: 0 to ``seeds`` − 1 are trained.
        folds: None: the test set is predicted; else the validation sets of so many folds, and test is not touched.
        device: where to train.
        folder: of the files.
    """

    corpus: Corpus
    config: Config
    rows: tuple[Row, ...]
    seeds: int
    folds: int | None
    device: str
    folder: Path

    def __post_init__(self) -> None:
        corpus = self.corpus
        if self.config.select_on == "test":
            raise UserError("select_on: merc ablate chooses nothing on the test set; expected last or valid, got test")
        if self.folds is None and not corpus.class_counts(corpus.dialogues("test")).sum():
            raise UserError(f"corpus {corpus.name}: no labelled test utterance; compare on folds, with --folds 4")

    def parts(self) -> list[Part]:
        """One, or one a fold."""
        if self.folds is not None:
            return [Part(fold, fold, fold.dialogues("valid")) for fold in self.corpus.folds(self.folds)]
        corpus = self.corpus
        if self.config.select_on != "last":
            corpus = corpus.with_validation(self.config.validation_fraction)
        return [Part(corpus.only(np.flatnonzero(corpus.split != "test")), corpus, corpus.dialogues("test"))]

    def cells(self, row: Row) -> list[Cell]:
        """The trainings of a row: seed by seed, and for each fold by fold. Logistic regression has one seed."""
        config = configuration(row, self.config, self.corpus.dims, self.corpus.label_names.tolist())
        folds = range(1 if self.folds is None else self.folds)
        return [Cell(config, seed, fold) for seed in range(1 if config is None else self.seeds) for fold in folds]


@dataclass(frozen=True)
class Cell:
    """One training; rows with the same configuration share it.

    Attributes:
        config: None for logistic regression.
        seed: of the training.
        fold: number of the `Part`.
    """

    config: Config | None
    seed: int
    fold: int

    @property
    def key(self) -> str:
        """Names the configuration, in file names."""
        if self.config is None:
            return LOGISTIC
        return hashlib.sha256(json.dumps(dataclasses.asdict(self.config)).encode()).hexdigest()[:12]

    def path(self, folder: Path) -> Path:
        """Its file."""
        return folder / "cells" / self.key / f"seed-{self.seed}-part-{self.fold}.json"

    def read(self, folder: Path) -> dict[str, Any]:
        """Its file's content: predicted classes by head, number of parameters, seconds, and more."""
        path = self.path(folder)
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete it and go on") from None
        if not isinstance(content, dict):
            raise UserError(f"{path}: expected a JSON object; delete it and go on")
        return content


def run(ablation: Ablation, jobs: int, tell: Callable[[str], None]) -> None:
    """Train every cell that is not there yet.

    Args:
        ablation: what is asked.
        jobs: trainings beside each other.
        tell: takes a line on the progress now and then, where there is no terminal for a progress bar.
    """
    parts = ablation.parts()  # before anything is written: it may be impossible
    for part in parts:
        _check_values(part)
    _start(ablation)
    titles: dict[Cell, str] = {}
    for row in ablation.rows:
        for cell in ablation.cells(row):
            titles.setdefault(cell, row.title)
    left = [cell for cell in titles if not cell.path(ablation.folder).is_file()]
    if not left:
        return
    work = functools.partial(_train, parts, ablation.folder, ablation.device, ablation.config.causal)
    jobs = min(jobs, len(left))
    tell(f"{len(left)} of {len(titles)} trainings to do, {jobs} at a time, a thread each")
    started = told = time.monotonic()
    with tqdm(total=len(titles), initial=len(titles) - len(left), unit="training", disable=None) as bar:
        for done, (cell, valid) in enumerate(outcomes(work, left, jobs), start=1):
            said = f"{titles[cell]}, seed {cell.seed}" + (f", fold {cell.fold + 1}" if ablation.folds else "")
            said += "" if valid is None else f", weighted F1 {valid:.4f} on valid"
            bar.set_postfix_str(said)
            bar.update()
            now = time.monotonic()
            if bar.disable and (now - told >= _SECONDS_BETWEEN_LINES or done == len(left)):
                minutes = (now - started) / done * (len(left) - done) / 60
                tell(f"{done} of {len(left)} trained ({said}); about {minutes:.0f} minutes to go")
                told = now


def _check_values(part: Part) -> None:
    """What a training, or the prediction after it, would refuse."""
    for modality, dim in part.training.dims.items():
        standardize = Standardize(dim)
        fit_training_rows(standardize, part.training, modality)
        check_rows(standardize, part.corpus, modality, np.arange(len(part.corpus.labels)))


def _start(ablation: Ablation) -> None:
    """Make the folder, or check that it asks the same."""
    path = ablation.folder / "ablation.json"
    versions = {name: environment()[name] for name in ("merc-kdc", "torch")}
    question = {
        "format": FORMAT,
        "versions": versions,
        "corpus": {"name": ablation.corpus.name, "sha256": ablation.corpus.fingerprint()},
        "folds": ablation.folds,
        "config": dataclasses.asdict(ablation.config),
    }
    if path.is_file():
        try:
            before = json.loads(path.read_text("utf-8"))
            changed = [key for key in question if key != "corpus" and before[key] != question[key]]
            changed += ["data"] if before["corpus"]["sha256"] != ablation.corpus.fingerprint() else []
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path}: cannot be read; the file was changed: give another --out") from None
        if changed:
            raise UserError(
                f"{ablation.folder} was started with another {', '.join(changed)};"
                " go on in it with the same, or give another --out"
            )
        return
    if ablation.folder.exists() and any(ablation.folder.iterdir() if ablation.folder.is_dir() else [True]):
        raise UserError(f"{ablation.folder} exists, and is not the folder of an ablation; give another --out")
    _make_folder(ablation.folder)
    write_whole(path, lambda file: file.write((json.dumps(question, indent=2, ensure_ascii=False) + "\n").encode()))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made: {error.strerror or error}") from None


def _train(parts: Sequence[Part], folder: Path, device: str, causal: bool, cell: Cell) -> float | None:
    """Train a cell and write its file; its weighted F1 on the training's own validation set."""
    started = time.perf_counter()
    part, path = parts[cell.fold], cell.path(folder)
    if cell.config is None:
        baseline = LogisticBaseline(part.training, causal)
        predicted = {FUSED: baseline.predict(part.corpus, part.dialogues)}
        valid = None
        facts: dict[str, Any] = {
            "parameters": baseline.parameters,
            "window": baseline.window,
            "penalty": baseline.penalty,
        }
    else:
        training = Training(part.training, cell.config, cell.seed, torch.device(device))
        with contextlib.redirect_stderr(io.StringIO()):  # its own progress
            for _ in training.epochs():
                pass
        probabilities = predict(training.model, part.corpus, part.dialogues).probabilities
        predicted = {head: rows.argmax(axis=1) for head, rows in probabilities.items()}
        valid = training.metrics("valid").get(FUSED, {}).get("weighted_f1")
        facts = {
            "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
            "valid_weighted_f1": valid,
            "epochs": len(training.history),
            "config": dataclasses.asdict(cell.config),
        }
    content = {
        "seed": cell.seed,
        "seconds": round(time.perf_counter() - started, 3),
        **facts,
        "environment": environment(),
        "predicted": {head: classes.tolist() for head, classes in predicted.items()},
    }
    _make_folder(path.parent)
    write_whole(path, lambda file: file.write((json.dumps(content) + "\n").encode()))
    return valid

"""A run from its first file to its last: start or resume, train, report."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merc_model import report
from merc_model.checkpoint import Record, RunFolder, environment
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, predict
from merc_model.training import Training

_SECONDS_BETWEEN_SAVES = 10.0


def train(folder: RunFolder, record: Record, corpus: Corpus, device: torch.device, resume: bool) -> dict[str, Any]:
    """Train in ``folder`` and return its metrics.json.

    Args:
        folder: where; made here unless ``resume`` finds it.
        record: what to train, as `Record.of` the corpus gives it.
        corpus: with a validation set where the configuration chooses the epoch on it.
        device: where to compute.
        resume: go on in the folder if it is there; a finished run gives its metrics at once.

    Raises:
        UserError: an existing folder without ``resume``; a resumed run with another corpus, seed or configuration.
    """
    training = Training(corpus, record.config, record.seed, device)
    if resume and folder.path.is_dir() and not any(folder.path.iterdir()):
        folder.path.rmdir()  # what a run leaves that ended before its first file
    if resume and folder.path.exists():
        check_same(folder, record)
        if folder.finished:
            return folder.read_json("metrics.json")
        state = folder.read_state(device)
        if state is not None:
            training.restore(state)
    else:
        folder.create(record)
    saved = time.monotonic()
    for _ in training.epochs():
        folder.write_history(training.history)
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            folder.write_state(training.state())
            saved = time.monotonic()
    return _finish(folder, training)


def check_same(folder: RunFolder, record: Record) -> None:
    """A UserError unless ``folder`` was started with the same configuration, seed and corpus contents."""
    before, now = folder.record(), record
    settings = dataclasses.asdict(before.config)
    changed = [key for key, value in dataclasses.asdict(now.config).items() if value != settings[key]]
    changed += ["seed"] if before.seed != now.seed else []
    changed += ["data"] if before.corpus["sha256"] != now.corpus["sha256"] else []
    if changed:
        raise UserError(
            f"{folder.path} was started with another {', '.join(changed)};"
            " resume it with the same, or give another --out"
        )


def _finish(folder: RunFolder, training: Training) -> dict[str, Any]:
    """Write the model, the plots and, last, the metrics."""
    folder.write_model(training.model)
    folder.write_history(training.history)
    corpus, label_names = training.corpus, training.model.label_names
    scores = {split: training.metrics(split) for split in ("test", "valid")}
    metrics: dict[str, Any] = {
        "test": scores["test"].get(FUSED, {}),
        "valid": scores["valid"].get(FUSED, {}),
        "heads": {head: {"test": values} for head, values in scores["test"].items() if head != FUSED},
        "seconds": {"training": round(training.seconds, 3)},
        "seed": training.seed,
    }
    shown = next((split for split in ("test", "valid") if metrics[split]), "train")
    predictions = predict(training.model, corpus, corpus.dialogues(shown))
    shown_metrics = metrics.get(shown) or predictions.metrics(label_names)
    title = f"{corpus.name}, {shown} set"
    report.confusion(folder.path / "confusion.png", shown_metrics["confusion"], label_names, title)
    report.curves(folder.path / "curves.png", training.history, corpus.name)
    prototypes = training.model.prototypes.detach().float().cpu().numpy()
    report.embeddings(folder.path / "embeddings.png", predictions, prototypes, label_names, title)
    folder.write_json("metrics.json", metrics)
    (folder.path / "resume.pt").unlink(missing_ok=True)
    return metrics


def summarize(folder: Path, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """summary.json of several seeds: mean and sd (n − 1) of each test metric."""
    names = [name for name in runs[0]["test"] if name not in ("f1", "confusion", "utterances")]
    values = {name: [run["test"][name] for run in runs] for name in names}
    values |= {f"f1/{label}": [run["test"]["f1"][label] for run in runs] for label in runs[0]["test"].get("f1", {})}
    summary = {
        "environment": environment(),
        "seeds": [run["seed"] for run in runs],
        "test": {
            name: {
                "mean": float(np.mean(scores)),
                "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
            }
            for name, scores in values.items()
        },
    }
    RunFolder(folder).write_json("summary.json", summary)
    return summary

"""A run from its first file to its last: start or resume, train, report."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from merc_model import finetune, report
from merc_model.checkpoint import Record, RunFolder, environment
from merc_model.config import Config
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, predict
from merc_model.model import MercModel
from merc_model.ranks import Ranks
from merc_model.training import Training

_SECONDS_BETWEEN_SAVES = 10.0
_PICTURES = ("confusion.png", "curves.png", "embeddings.png")


def train(
    folder: RunFolder,
    record: Record,
    corpus: Corpus,
    device: torch.device,
    resume: bool,
    notes: Sequence[str] = (),
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train in ``folder`` and return its metrics.json.

    Args:
        folder: where; made here unless ``resume`` finds it.
        record: what to train, as `Record.of` the corpus gives it.
        corpus: with a validation set where the configuration chooses the epoch on it.
        device: where to compute.
        resume: go on in the folder if it is there; a finished run gives its metrics at once.
        notes: lines to print once nothing stands in the way any more.
        ranks: the processes that train together; the first reads and writes the folder.

    Raises:
        UserError: an existing folder without ``resume``; a resumed run with another corpus, seed or configuration.
    """
    ranks = ranks or Ranks()
    if record.config.finetune_text:
        if ranks.count > 1:
            raise UserError("finetune_text: trains on one process; start merc train without torchrun")
        if resume:
            folder.remove_if_empty()
        if not (resume and folder.path.exists()):
            folder.create(finetune.recorded(record, corpus))
            resume = True
        check_same(folder, record)
        corpus = finetune.tuned(folder, folder.record(), corpus, device)
    training = Training(corpus, record.config, record.seed, device, ranks)
    metrics, state = ranks.of_first(lambda: _begin(folder, record, corpus, device, resume))
    if metrics is not None:
        return metrics
    if state is not None:
        try:
            training.restore(state)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError):
            raise UserError(
                f"{folder.path / 'resume.pt'}: is damaged, or not of this run; delete it to start anew"
            ) from None
    for line in notes if ranks.first else ():
        tqdm.write(line, file=sys.stderr)
    saved = time.monotonic()
    for _ in training.epochs():
        if not ranks.first:
            continue
        folder.write_history(training.history)
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            folder.write_state(training.state())
            saved = time.monotonic()
    return ranks.of_first(lambda: _finish(folder, training))


def _begin(
    folder: RunFolder, record: Record, corpus: Corpus, device: torch.device, resume: bool
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The metrics of a run that is finished, or the state of one that is not, or neither: the folder is new."""
    if resume:
        folder.remove_if_empty()
    if not (resume and folder.path.exists()):
        folder.create(record)
        return None, None
    check_same(folder, record)
    if not folder.finished:
        return None, folder.read_state(torch.device("cpu"))  # from where every rank puts it on its own
    metrics = folder.metrics()
    if not all((folder.path / name).exists() for name in _PICTURES):
        _draw(folder, folder.read_model(device), corpus, record.config, metrics, folder.history())
    return metrics, None


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
    """Write the model and the metrics; then the pictures, which neither waits for."""
    folder.write_model(training.model)
    folder.write_history(training.history)
    corpus = training.corpus
    scores = {split: training.metrics(split) for split in ("test", "valid")}
    metrics: dict[str, Any] = {
        "test": scores["test"].get(FUSED, {}),
        "valid": scores["valid"].get(FUSED, {}),
        "heads": {head: {"test": values} for head, values in scores["test"].items() if head != FUSED},
        "seconds": {"training": round(training.seconds, 3)},
        "seed": training.seed,
    }
    folder.write_json("metrics.json", metrics)
    (folder.path / "resume.pt").unlink(missing_ok=True)
    _draw(folder, training.model, corpus, training.config, metrics, training.history)
    return metrics


def _draw(
    folder: RunFolder,
    model: MercModel,
    corpus: Corpus,
    config: Config,
    metrics: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    shown = next((split for split in ("test", "valid") if metrics[split]), "train")
    predictions = predict(model, corpus, corpus.dialogues(shown))
    counts = (metrics.get(shown) or predictions.metrics(model.label_names))["confusion"]
    title = f"{corpus.name}, {shown} set"
    prototypes = model.prototypes.detach().float().cpu().numpy() if config.fcl and config.elcl else None
    confusion, curves, embeddings = (folder.path / name for name in _PICTURES)
    report.attempt(report.confusion, confusion, counts, model.label_names, title)
    report.attempt(report.curves, curves, history, corpus.name)
    report.attempt(report.embeddings, embeddings, predictions, prototypes, model.label_names, title)


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

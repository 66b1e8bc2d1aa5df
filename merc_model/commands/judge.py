"""``merc evaluate`` and ``merc report``: a run on a corpus."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model import finetune
from merc_model.checkpoint import RunFolder, load
from merc_model.commands.given import corpus_of, device_of, with_validation
from merc_model.commands.shown import MADE_UP, note, print_metrics
from merc_model.config import MODALITIES
from merc_model.data.corpus import SPLITS, Corpus
from merc_model.data.notes import missing_rows
from merc_model.errors import UserError
from merc_model.evaluation import predict
from merc_model.extract import command as extraction
from merc_model.files import write_whole
from merc_model.model import MercModel
from merc_model.pages.run import Judged, run_page


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """What these commands of ``merc`` take."""
    command = commands.add_parser("evaluate", help="metrics of a run on a corpus")
    command.set_defaults(run=_evaluate)
    command.add_argument("folder", type=Path, metavar="RUN")
    command.add_argument("--data", type=Path, metavar="CORPUS", help="default: the corpus of the run")
    command.add_argument("--split", choices=SPLITS, default="test")
    command.add_argument("--drop", type=_modalities, default=[], metavar="MODALITIES", help="such as audio,visual")
    command.add_argument("--device", default="auto", metavar="D")

    command = commands.add_parser(
        "report", help="a run as a page: figures with intervals, confusion, calibration, errors"
    )
    command.set_defaults(run=_report)
    command.add_argument("folder", type=Path, metavar="RUN")
    command.add_argument("--data", type=Path, metavar="CORPUS", help="default: the corpus of the run")
    command.add_argument("--split", choices=SPLITS, default="test")
    command.add_argument("--out", type=Path, metavar="FILE.html", help="default: RUN/report.html, which is overwritten")
    command.add_argument("--force", action="store_true", help="overwrite FILE where it exists")
    command.add_argument("--device", default="auto", metavar="D")


def _evaluate(options: argparse.Namespace) -> None:
    model, corpus, dialogues, path = _judged(options)
    predictions = predict(model, corpus, dialogues, options.drop)
    without = f", without {' and '.join(options.drop)}" if options.drop else ""
    print(f"{corpus.name}, {options.split} set{without}" + (f" ({MADE_UP})" if path is None else ""))
    note(corpus, missing_rows(corpus, dialogues))
    print_metrics(predictions.metrics(model.label_names))


def _report(options: argparse.Namespace) -> None:
    folder = RunFolder(options.folder)
    out: Path = options.out or folder.path / "report.html"
    if options.out is not None and out.suffix.lower() != ".html":
        raise UserError(f"--out {out}: expected a name that ends in .html")
    if options.out is not None and out.exists() and not options.force:
        raise UserError(f"{out} exists; move it away, give another --out, or overwrite it with --force")
    model, corpus, dialogues, path = _judged(options)
    record = folder.record()
    config = record.config
    judged = Judged(
        title=f"{folder.path.resolve().name}: {corpus.name}, {options.split} set",
        facts=[
            f"{len(dialogues):,} dialogues; seed {record.seed}; "
            + ", ".join(f"{modality} {dim}" for modality, dim in record.corpus["dims"].items()),
            *([MADE_UP] if path is None else []),
        ],
        corpus=corpus,
        dialogues=dialogues,
        predictions=predict(model, corpus, dialogues),
        label_names=model.label_names,
        prototypes=model.prototypes.detach().float().cpu().numpy() if config.fcl and config.elcl else None,
        history=folder.history(),
    )
    data = run_page(judged)
    write_whole(out, lambda file: file.write(data))
    print(f"report: {out}")


def _judged(options: argparse.Namespace) -> tuple[MercModel, Corpus, NDArray[np.int64], Path | None]:
    """The model of a run, the corpus it is judged on, the dialogues of the split, and the file of the corpus."""
    folder = RunFolder(options.folder)
    model = load(options.folder, device_of(options.device))
    record = folder.record()
    path: Path | None = options.data or record.source
    corpus = corpus_of(path)
    if options.data is None or options.split != "test":
        corpus = with_validation(corpus, record.config)
    if options.data is None and corpus.fingerprint() != record.corpus["sha256"]:
        raise UserError(
            f"{path or 'the embedded corpus'} is not what the run was trained on; name the corpus with --data"
        )
    if record.config.finetune_text:
        corpus = finetune.retold(folder, record, corpus, device_of(options.device))
    extraction.refuse_other_features(path or Path(), corpus.extraction, record.corpus.get("extraction"))
    dialogues = corpus.dialogues(options.split)
    if not corpus.class_counts(dialogues).sum():
        raise UserError(f"corpus {corpus.name}: no labelled utterance in split {options.split!r}")
    return model, corpus, dialogues, path


def _modalities(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in MODALITIES:
            raise argparse.ArgumentTypeError(f"expected modalities such as {','.join(MODALITIES[1:])}, got {name!r}")
    return names

"""``merc ablate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from merc_model.ablation import cells, results, rows
from merc_model.ablation.processes import cores
from merc_model.commands.given import config_of, corpus_of, device_of
from merc_model.commands.shown import MADE_UP
from merc_model.config import presets
from merc_model.errors import UserError


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """What the command of ``merc`` takes."""
    command = commands.add_parser("ablate", help="what each part is worth: one table over rows and seeds")
    command.set_defaults(run=_ablate)
    command.add_argument("--data", type=Path, metavar="CORPUS", help="default: the embedded synthetic one")
    command.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(presets())}")
    command.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value", help="of the full model")
    command.add_argument("--seeds", type=int, default=5, metavar="N", help="0 to N-1 (default: 5)")
    command.add_argument("--jobs", type=int, metavar="J", help="trainings beside each other (default: the cores)")
    command.add_argument(
        "--folds", type=int, metavar="K", help="compare on K folds of the training dialogues; test is not touched"
    )
    command.add_argument(
        "--rows", type=lambda text: text.split(","), default=[], metavar="NAMES", help="such as early,ce,full"
    )
    command.add_argument("--device", default="cpu", metavar="D", help="cpu (default), cuda, …")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: ablations/NAME-OF-CORPUS; goes on in it")


def _ablate(options: argparse.Namespace) -> None:
    for name, value in (("--seeds", options.seeds), ("--jobs", options.jobs)):
        if value is not None and value < 1:
            raise UserError(f"{name}: expected at least 1, got {value}")
    corpus = corpus_of(options.data)
    config = config_of(options)
    if config.finetune_text:
        raise UserError("finetune_text: merc ablate compares on features as they are; fine-tune with merc train")
    ablation = cells.Ablation(
        corpus=corpus,
        config=config,
        rows=rows.chosen(options.rows),
        seeds=options.seeds,
        folds=options.folds,
        device=str(device_of(options.device)),
        folder=options.out or Path("ablations") / (corpus.name + (f"-{options.folds}-folds" if options.folds else "")),
    )
    cells.run(ablation, options.jobs or cores(), lambda line: print(f"merc ablate: {line}", file=sys.stderr))
    print(results.write(ablation), end="")
    if options.data is None:
        print(f"\n{MADE_UP}")
    print(f"\ntable: {ablation.folder / 'results.md'}")

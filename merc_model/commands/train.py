"""``merc train``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from merc_model.checkpoint import Record, RunFolder
from merc_model.commands.given import config_of, corpus_of, device_of, with_validation
from merc_model.commands.shown import MADE_UP, print_metrics
from merc_model.config import presets
from merc_model.data.notes import missing_rows, validation_cut
from merc_model.errors import UserError
from merc_model.ranks import Ranks, joined
from merc_model.run import summarize, train


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """What the command of ``merc`` takes."""
    command = commands.add_parser("train", help="train teacher, students and fusion; write a run folder")
    command.set_defaults(run=_train)
    command.add_argument(
        "--data", type=Path, metavar="CORPUS", help="corpus .npz (default: the embedded synthetic one)"
    )
    command.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(presets())}")
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key=value", help="settings to change"
    )
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, metavar="N")
    seeds.add_argument("--seeds", type=int, metavar="N", help="train seeds 0 to N-1 and summarise them")
    command.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, … (default: cuda where there is one)"
    )
    command.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: runs/NAME-OF-CORPUS)")
    command.add_argument("--resume", action="store_true", help="go on in RUN; start it where it is not there")


def _train(options: argparse.Namespace) -> None:
    with joined() as ranks:
        _train_on(options, ranks)


def _train_on(options: argparse.Namespace, ranks: Ranks) -> None:
    device = device_of(options.device)
    config = config_of(options)
    given = corpus_of(options.data)
    corpus = with_validation(given, config)
    out: Path = options.out or Path("runs") / corpus.name
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed: expected at least 0 and below 2^63, got {options.seed}")
    if options.seeds is None:
        runs = {options.seed: out}
    elif options.seeds < 1:
        raise UserError(f"--seeds: expected at least 1, got {options.seeds}")
    else:
        runs = {seed: out / f"seed-{seed}" for seed in range(options.seeds)}
    ranks.of_first(lambda: None if options.resume else _check_new(out))
    notes = [f"{corpus.name}: {line}" for line in missing_rows(corpus, np.arange(len(corpus.split)))]
    notes += [validation_cut(corpus)] if corpus is not given else []
    results: list[dict[str, Any]] = []
    for seed, folder in runs.items():
        record = Record.of(config, seed, corpus, options.data)
        told = () if results else notes
        results.append(train(RunFolder(folder), record, corpus, device, options.resume, told, ranks))
        if not ranks.first:
            continue
        for shown in [split for split in ("test", "valid") if results[-1][split]][:1]:
            print(f"{corpus.name}, {shown} set, seed {seed}" + (f" ({MADE_UP})" if options.data is None else ""))
            print_metrics(results[-1][shown])
        print(f"report: {folder}")
    if options.seeds is not None and ranks.first:
        summary = summarize(out, results)
        for name, values in summary["test"].items():
            print(f"{name:>16}  {values['mean']:.4f} ± {values['sd']:.4f}")
        print(f"summary: {out / 'summary.json'}")


def _check_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists; go on in it with --resume, or give another --out")

"""``merc convert``, ``merc extract`` and ``merc doctor``: corpora, made and looked at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from merc_model.data.community import LAYOUTS, convert
from merc_model.data.corpus import Corpus
from merc_model.doctor.findings import examine
from merc_model.errors import UserError
from merc_model.extract import command as extraction


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """What these commands of ``merc`` take."""
    command = commands.add_parser("convert", help="the field's pickles to a corpus .npz, read safely")
    command.set_defaults(run=_convert)
    command.add_argument("files", nargs="+", type=Path, metavar="FILES")
    command.add_argument("--out", type=Path, required=True, metavar="CORPUS.npz")
    command.add_argument(
        "--layout", choices=sorted(LAYOUTS), metavar="NAME", help=f"one of {', '.join(sorted(LAYOUTS))}"
    )
    command.add_argument(
        "--groups", metavar="prefix:N", help="dialogues whose ids begin alike are not parted by cuts and folds"
    )

    command = commands.add_parser("extract", help="transcripts and recordings to a corpus .npz (merc-kdc[extract])")
    command.set_defaults(run=_extract)
    extraction.add_arguments(command)

    command = commands.add_parser("doctor", help="what is wrong with the features of a corpus, worst first")
    command.set_defaults(run=_doctor)
    command.add_argument("corpus", type=Path, metavar="CORPUS.npz")


def _convert(options: argparse.Namespace) -> None:
    if options.out.suffix.lower() != ".npz":
        raise UserError(f"--out {options.out}: expected a name that ends in .npz")
    if options.out.exists():
        raise UserError(f"{options.out} exists; give another --out")
    first: Path = options.files[0]
    if first.suffix.lower() == ".npz":
        if options.groups is None or len(options.files) > 1 or options.layout:
            raise UserError(f"{first} is a corpus already; merc convert can only add groups to it, with --groups")
        corpus = Corpus.load(first)
    else:
        corpus = convert(
            options.files, options.layout, warn=lambda warning: print(f"warning: {warning}", file=sys.stderr)
        )
    if options.groups is not None:
        corpus = corpus.with_groups(options.groups)
    corpus.save(options.out)
    dims = ", ".join(f"{modality} {dim}" for modality, dim in corpus.dims.items())
    print(f"{options.out}: {len(corpus.dialogue_ids)} dialogues, {len(corpus.labels)} utterances; {dims}")
    if corpus.groups is not None:
        names, counts = np.unique(corpus.groups, return_counts=True)
        shown = [f"{name} {count}" for name, count in zip(names[:8], counts, strict=False)]
        print(f"groups: {len(names)} ({', '.join(shown)}{', …' if len(names) > 8 else ''} dialogues)")
    _short_findings(corpus, options.out)


def _extract(options: argparse.Namespace) -> None:
    corpus = extraction.run(options)
    dims = ", ".join(f"{modality} {dim}" for modality, dim in corpus.dims.items())
    print(f"{options.out}: {len(corpus.dialogue_ids)} dialogues, {len(corpus.labels)} utterances; {dims}")
    _short_findings(corpus, options.out)


def _doctor(options: argparse.Namespace) -> int:
    findings = examine(Corpus.load(options.corpus))
    for finding in findings:
        print(f"{'misleads' if finding.misleads else 'note'}: {finding.text}")
    if not findings:
        print("nothing was found")
    return int(any(finding.misleads for finding in findings))


def _short_findings(corpus: Corpus, path: Path) -> None:
    findings = examine(corpus)
    for finding in findings:
        if finding.misleads:
            print(f"misleads: {finding.text}")
    if findings:
        print(f"findings: {len(findings)}; merc doctor {path} lists them")

"""``merc extract``, and raw tables given to ``merc predict``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.extract.cache import Cache
from merc_model.extract.features import extract
from merc_model.extract.layouts import LABELS, LAYOUTS, read_iemocap, read_meld
from merc_model.extract.live import Live
from merc_model.extract.measures import MEASURES
from merc_model.extract.rows import Work
from merc_model.extract.settings import Settings
from merc_model.extract.table import read_tables

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of ``merc extract``."""
    default = Settings()
    command.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="CSV, TSV or JSON lines; a release")
    command.add_argument("--out", type=Path, required=True, metavar="CORPUS.npz")
    command.add_argument("--layout", choices=LAYOUTS, metavar="NAME", help=f"one of {', '.join(LAYOUTS)}")
    command.add_argument(
        "--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="such as text=Utterance dialogue=Dialogue_ID"
    )
    command.add_argument("--text", default=default.text, metavar="ENCODER", help=f"or none (default: {default.text})")
    command.add_argument("--text-pooling", default=default.text_pooling, metavar="P", help="mean, first, last, max")
    command.add_argument("--text-context", type=int, default=0, metavar="K", help="utterances before it (default: 0)")
    command.add_argument(
        "--audio",
        default=default.audio,
        metavar="ENCODER",
        help=f"{', '.join(MEASURES)} (default: prosody), a name, or none",
    )
    command.add_argument("--asr", default="none", metavar="MODEL", help="fills empty texts (default: none)")
    command.add_argument("--visual", default="none", metavar="ENCODER", help="a name, or none (default)")
    command.add_argument("--faces", action="store_true", help="see only the largest face of each picture")
    command.add_argument("--frames", type=int, default=default.frames, metavar="N", help="pictures of an utterance")
    command.add_argument("--cache", type=Path, metavar="FILE", help="default: beside CORPUS.npz")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="default: the cores")
    command.add_argument("--device", default="cpu", metavar="D")


def run(options: argparse.Namespace) -> Corpus:
    """Extract some tables to a corpus, and save it."""
    out: Path = options.out
    if out.suffix.lower() != ".npz":
        raise UserError(f"--out {out}: expected a name that ends in .npz")
    if out.exists():
        raise UserError(f"{out} exists; give another --out")
    for name, value, least in (
        ("--text-context", options.text_context, 0),
        ("--frames", options.frames, 1),
        ("--workers", options.workers, 1),
    ):
        if value < least:
            raise UserError(f"{name}: expected at least {least}, got {value}")
    columns = dict(pair.partition("=")[::2] for pair in options.columns)
    if options.layout and columns:
        raise UserError("--columns: a --layout knows its own columns")
    if options.layout is None:
        utterances = read_tables(options.tables, columns)
    else:
        utterances = {"meld": read_meld, "iemocap": read_iemocap}[options.layout](options.tables)
    settings = Settings(
        text=_encoder(options.text),
        text_pooling=options.text_pooling,
        text_context=options.text_context,
        asr=_encoder(options.asr),
        audio=_encoder(options.audio),
        visual=_encoder(options.visual),
        frames=options.frames,
        faces=options.faces,
    )
    cache = Cache(options.cache or out.with_suffix(".cache"))
    work = Work(cache, options.workers, options.device, _warn)
    corpus = extract(utterances, settings, work, name=out.stem, label_names=LABELS.get(options.layout, ()))
    cache.close()
    corpus.save(out)
    return corpus


def conversation(
    path: Path,
    extraction: str | None,
    modalities: Iterable[str],
    label_names: list[str],
    device: str,
    *,
    recordings: bool = True,
    dialogue: str | None = None,
) -> Corpus:
    """The one conversation of a table, or the one that ``dialogue`` says, with the features a run was trained on.

    Those are of ``modalities``: there may have been no recordings. Without ``recordings`` the files that the table
    names are not opened.
    """
    if extraction is None:
        raise UserError(f"{path}: the run's corpus was not made by merc extract, so its features cannot be made here")
    settings = _unchanged(extraction, modalities)
    utterances = [replace(utterance, label="", split="test") for utterance in read_tables([path])]
    if dialogue is not None:
        utterances = [utterance for utterance in utterances if utterance.dialogue == dialogue]
    found = {utterance.dialogue for utterance in utterances}
    if len(found) > 1:
        raise UserError(f"{path}: holds {len(found)} dialogues; say which: --dialogue ID")
    if not found:
        raise UserError(f"{path}: no dialogue {dialogue!r}")
    if not recordings:
        utterances = [replace(utterance, media=None) for utterance in utterances]
    work = Work(Cache(Path(":memory:")), device=device, warn=_warn)
    return extract(utterances, settings, work, name=path.stem, label_names=label_names)


def live(extraction: str, modalities: Iterable[str], device: str) -> Live:
    """What makes the features that a run was trained on, an utterance at a time."""
    return Live(_unchanged(extraction, modalities), device)


def _unchanged(extraction: str, modalities: Iterable[str]) -> Settings:
    """The settings of some modalities; a UserError where an encoder is not what it was."""
    settings = Settings.of(extraction).only(modalities)
    changed = settings.difference(replace(settings, contents=settings.contents | settings.with_contents().contents))
    if changed:
        raise UserError(f"the run was trained with the {changed} than they have now")
    return settings


def refuse_other_features(path: Path, extraction: str | None, of_run: str | None) -> None:
    """A UserError for features that were made otherwise than those of a run; of unknown ones nothing is said."""
    if extraction is None or of_run is None:
        return
    difference = Settings.of(extraction).difference(Settings.of(of_run))
    if difference:
        raise UserError(
            f"{path}: other features than the run was trained on: {difference}; extract it as its corpus was"
        )


def _encoder(name: str) -> str | None:
    folder = Path(name)
    return None if name == "none" else str(folder.resolve()) if folder.is_dir() else name


def _warn(line: str) -> None:
    sys.stderr.write(f"warning: {line}\n")

"""``merc predict`` and ``merc serve``: conversations that nobody has labelled."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merc_model import finetune, report
from merc_model.checkpoint import RunFolder, load
from merc_model.commands.given import device_of
from merc_model.commands.shown import note
from merc_model.data.conversation import read_conversation
from merc_model.data.corpus import Corpus
from merc_model.data.notes import missing_rows
from merc_model.data.spoken import Spoken
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, Predictions, answer, predict
from merc_model.extract import command as extraction
from merc_model.files import write_whole
from merc_model.pages.server import HOST, Server
from merc_model.pages.talk import talk
from merc_model.stream import answers, lines_of


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """What these commands of ``merc`` take."""
    command = commands.add_parser("predict", help="emotions of one conversation, and its timeline as a picture")
    command.set_defaults(run=_predict)
    command.add_argument("folder", type=Path, metavar="RUN")
    command.add_argument(
        "conversation",
        type=Path,
        nargs="?",
        metavar="CONVERSATION",
        help=".npz or .json; .csv, .tsv or .jsonl: extracted first",
    )
    command.add_argument(
        "--stream",
        action="store_true",
        help="answer lines of JSON or CSV as they come, from CONVERSATION or the standard input",
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help=".html (a page), .csv or .json (default: print, as CSV)"
    )
    command.add_argument("--force", action="store_true", help="overwrite FILE and its picture where they exist")
    command.add_argument("--dialogue", metavar="ID", help="which conversation, where CONVERSATION holds several")
    command.add_argument("--device", default="auto", metavar="D")

    command = commands.add_parser(
        "serve", help="upload conversations in a browser on this machine, and see their pages"
    )
    command.set_defaults(run=_serve)
    command.add_argument("folder", type=Path, metavar="RUN")
    command.add_argument("--port", type=int, default=8008, metavar="N", help="default: 8008; 0 for a free one")
    command.add_argument("--limit", type=int, default=64, metavar="MIB", help="of an upload (default: 64)")
    command.add_argument("--device", default="auto", metavar="D")


def _predict(options: argparse.Namespace) -> None:
    if options.stream:
        _stream(options)
        return
    if options.conversation is None:
        raise UserError("CONVERSATION is missing; the standard input is read with --stream alone")
    out: Path | None = options.out
    kind = out.suffix.lower() if out else ".csv"
    if kind not in (".csv", ".json", ".html"):
        raise UserError(f"--out {out}: expected a name that ends in .csv, .json or .html")
    picture = out.with_suffix(".png") if out else Path(f"{options.conversation.stem}.timeline.png")
    if out is not None and out.exists():
        if not options.force:
            raise UserError(f"{out} exists; move it away, give another --out, or overwrite it with --force")
        if options.conversation.exists() and out.samefile(options.conversation):
            raise UserError(f"{out} is the conversation itself; give another --out")
    if not options.force:
        picture = _free(picture)
    model = load(options.folder, device_of(options.device))
    notes: list[str] = []
    conversation = _read(options, options.conversation, model.label_names, notes.append, dialogue=options.dialogue)
    predictions = predict(model, conversation, conversation.dialogues("test"))
    notes += missing_rows(conversation, conversation.dialogues("test"))
    lacking = [modality for modality in model.modalities if modality not in conversation.features]
    notes += [f"has no {' and no '.join(lacking)}; predicted without"] if lacking else []
    rows = _rows(predictions, conversation, model.label_names)
    probabilities = predictions.probabilities[FUSED]
    if out is None:
        sys.stdout.write(_csv(rows))
    elif kind == ".html":
        made = f"Emotions as the model in {options.folder} predicts them; it can be wrong."
        data = talk(conversation.name, made, probabilities, model.label_names, Spoken.of(conversation), out.parent)
        write_whole(out, lambda file: file.write(data))
    else:
        text = _csv(rows) if kind == ".csv" else json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        write_whole(out, lambda file: file.write(text.encode(errors="backslashreplace")))
    sys.stdout.flush()
    note(conversation, notes)
    if kind == ".html":
        return
    arguments = (probabilities, conversation.speakers, model.label_names, conversation.name)
    if report.attempt(report.timeline, picture, *arguments):
        print(f"timeline: {picture}", file=sys.stderr)


def _stream(options: argparse.Namespace) -> None:
    if options.out is not None:
        raise UserError("--out: --stream answers on the standard output, and draws no timeline")
    if options.dialogue is not None:
        raise UserError("--dialogue: --stream answers every line; each names its dialogue itself")
    device, record = device_of(options.device), RunFolder(options.folder).record()
    model, settings = load(options.folder, device), _extraction(options.folder)
    path: Path | None = options.conversation
    rows = answers(
        model,
        sys.stdin.buffer if path is None else lines_of(path),
        lambda line: print(line, file=sys.stderr, flush=True),
        live=None if settings is None else lambda: extraction.live(settings, model.modalities, str(device)),
        folder=Path() if path is None else path.parent,
        words_alone=record.config.finetune_text,
    )
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), flush=True)


def _serve(options: argparse.Namespace) -> None:
    if options.limit < 1:
        raise UserError(f"--limit: expected at least 1, got {options.limit}")
    model = load(options.folder, device_of(options.device))
    made = f"Emotions as the model in {options.folder} predicts them; it can be wrong."

    def answer(path: Path, name: str) -> bytes:
        conversation = _read(options, path, model.label_names, recordings=False)
        predictions = predict(model, conversation, conversation.dialogues("test"))
        probabilities = predictions.probabilities[FUSED]
        return talk(name, made, probabilities, model.label_names, Spoken.of(conversation), None)

    kinds = (
        ".npz",
        ".json",
        *(extraction.TABLES if RunFolder(options.folder).record().corpus.get("extraction") else ()),
    )
    title = f"merc: {options.folder.resolve().name}"
    with Server(options.port, title, answer, kinds, options.limit * 2**20) as server:
        print(f"http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def _read(
    options: argparse.Namespace,
    path: Path,
    label_names: list[str],
    warn: Callable[[str], None] = lambda line: None,
    *,
    recordings: bool = True,
    dialogue: str | None = None,
) -> Corpus:
    """A conversation, extracted where it is a table."""
    folder, device = RunFolder(options.folder), device_of(options.device)
    record = folder.record()
    settings = record.corpus.get("extraction")
    if path.suffix.lower() in extraction.TABLES:
        settings, modalities = _extraction(options.folder), record.corpus["dims"]
        return extraction.conversation(
            path, settings, modalities, label_names, str(device), recordings=recordings, dialogue=dialogue
        )
    conversation = read_conversation(path, label_names, dialogue=dialogue, warn=warn)
    if record.config.finetune_text:
        conversation = finetune.retold(folder, record, conversation, device)
    extraction.refuse_other_features(path, conversation.extraction, settings)
    return conversation


def _extraction(run: Path) -> str | None:
    """How a run's features are made, if merc extract did; with the encoder that it fine-tuned, where it did."""
    folder = RunFolder(run)
    record = folder.record()
    extraction: str | None = record.corpus.get("extraction")
    return finetune.settings(folder, record).json() if record.config.finetune_text else extraction


def _free(path: Path) -> Path:
    """``path``, or a numbered name beside it that nothing has yet."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(free for free in itertools.chain((path,), numbered) if not free.exists())


def _rows(predictions: Predictions, conversation: Corpus, label_names: list[str]) -> list[dict[str, Any]]:
    answered = zip(conversation.speakers.tolist(), predictions.probabilities[FUSED], strict=True)
    return [answer(number, *row, label_names) for number, row in enumerate(answered, start=1)]


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["utterance", "speaker", "emotion", *rows[0]["probabilities"]])
    for row in rows:
        writer.writerow([row["utterance"], row["speaker"], row["emotion"], *row["probabilities"].values()])
    return buffer.getvalue()

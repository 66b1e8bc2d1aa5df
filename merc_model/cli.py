"""The command ``merc``: train, evaluate, predict, export, ablate, convert, info."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

import merc_kernels
from merc_model import finetune, report
from merc_model.ablation import cells, results, rows
from merc_model.ablation.processes import cores
from merc_model.checkpoint import Record, RunFolder, load
from merc_model.config import MODALITIES, Config, load_preset, parse_settings, presets
from merc_model.data.community import LAYOUTS, convert
from merc_model.data.conversation import read_conversation
from merc_model.data.corpus import SPLITS, Corpus
from merc_model.data.notes import missing_rows, validation_cut
from merc_model.data.spoken import read_spoken
from merc_model.data.synthetic import synthetic
from merc_model.doctor.findings import examine
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, Predictions, answer, predict
from merc_model.export import SUFFIXES, export, share
from merc_model.extract import command as extraction
from merc_model.files import write_whole
from merc_model.pages.talk import talk
from merc_model.ranks import LostRankError, Ranks, joined, number
from merc_model.run import summarize, train
from merc_model.stream import answers, lines_of

_MADE_UP = "synthetic data: the figures say that the software works, nothing about people"


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when done, 1 where doctor finds faults, 2 after a mistake, 130 when interrupted."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show
        options = _parser().parse_args(arguments)
        code: int = options.run(options) or 0
        sys.stdout.flush()
    except UserError as error:
        if str(error) and (number() == 0 or isinstance(error, LostRankError)):
            print(f"merc: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if number() == 0:
            line = "merc: interrupted; merc train goes on with --resume, merc ablate with the same command"
            print(line, file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        print("merc: error: out of memory; lower batch_dialogues or hidden_dim (--set)", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="merc", description="Emotion recognition in conversation with MERC-KDC.")
    parser.add_argument("--version", action="version", version=f"merc-kdc {merc_kernels.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

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

    command = commands.add_parser("evaluate", help="metrics of a run on a corpus")
    command.set_defaults(run=_evaluate)
    command.add_argument("folder", type=Path, metavar="RUN")
    command.add_argument("--data", type=Path, metavar="CORPUS", help="default: the corpus of the run")
    command.add_argument("--split", choices=SPLITS, default="test")
    command.add_argument("--drop", type=_modalities, default=[], metavar="MODALITIES", help="such as audio,visual")
    command.add_argument("--device", default="auto", metavar="D")

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
        "--stream", action="store_true", help="answer JSON lines as they come, from CONVERSATION or the standard input"
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help=".html (a page), .csv or .json (default: print, as CSV)"
    )
    command.add_argument("--force", action="store_true", help="overwrite FILE and its picture where they exist")
    command.add_argument("--device", default="auto", metavar="D")

    command = commands.add_parser("export", help="the whole predictor in one file, or in a folder to share")
    command.set_defaults(run=_export)
    command.add_argument("folder", type=Path, metavar="RUN")
    command.add_argument(
        "--to",
        required=True,
        choices=(*SUFFIXES, "hub"),
        help="ONNX, a program of torch.export, or a folder with a card",
    )
    command.add_argument("--out", type=Path, metavar="PATH", help="default: RUN/predictor.onnx, .pt2, or RUN/hub")

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

    command = commands.add_parser("info", help="versions, devices, backends, and which of them a call takes")
    command.set_defaults(run=_info)
    command.add_argument("--check", action="store_true", help="try each backend on small problems, and time them")
    return parser


def _train(options: argparse.Namespace) -> None:
    with joined() as ranks:
        _train_on(options, ranks)


def _train_on(options: argparse.Namespace, ranks: Ranks) -> None:
    device = _device(options.device)
    config = load_preset(options.preset) if options.preset else _default_config(options.data)
    config = config.changed(parse_settings(options.set))
    given = _corpus(options.data)
    corpus = _split(given, config)
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
            print(f"{corpus.name}, {shown} set, seed {seed}" + (f" ({_MADE_UP})" if options.data is None else ""))
            _print_metrics(results[-1][shown])
        print(f"report: {folder}")
    if options.seeds is not None and ranks.first:
        summary = summarize(out, results)
        for name, values in summary["test"].items():
            print(f"{name:>16}  {values['mean']:.4f} ± {values['sd']:.4f}")
        print(f"summary: {out / 'summary.json'}")


def _check_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists; go on in it with --resume, or give another --out")


def _evaluate(options: argparse.Namespace) -> None:
    folder = RunFolder(options.folder)
    model = load(options.folder, _device(options.device))
    record = folder.record()
    path = options.data or record.source
    corpus = _corpus(path)
    if options.data is None or options.split != "test":
        corpus = _split(corpus, record.config)
    if options.data is None and corpus.fingerprint() != record.corpus["sha256"]:
        raise UserError(
            f"{path or 'the embedded corpus'} is not what the run was trained on; name the corpus with --data"
        )
    if record.config.finetune_text:
        corpus = finetune.retold(folder, record, corpus, _device(options.device))
    extraction.refuse_other_features(path or Path(), corpus.extraction, record.corpus.get("extraction"))
    dialogues = corpus.dialogues(options.split)
    if not corpus.class_counts(dialogues).sum():
        raise UserError(f"corpus {corpus.name}: no labelled utterance in split {options.split!r}")
    predictions = predict(model, corpus, dialogues, options.drop)
    without = f", without {' and '.join(options.drop)}" if options.drop else ""
    print(f"{corpus.name}, {options.split} set{without}" + (f" ({_MADE_UP})" if path is None else ""))
    _note(corpus, missing_rows(corpus, dialogues))
    _print_metrics(predictions.metrics(model.label_names))


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
    model = load(options.folder, _device(options.device))
    notes: list[str] = []
    folder, record = RunFolder(options.folder), RunFolder(options.folder).record()
    settings = record.corpus.get("extraction")
    if options.conversation.suffix.lower() in extraction.TABLES:
        device = str(_device(options.device))
        if record.config.finetune_text:
            settings = finetune.settings(folder, record).json()
        conversation, spoken = extraction.conversation(options.conversation, settings, model.label_names, device)
    else:
        conversation = read_conversation(options.conversation, model.label_names, warn=notes.append)
        spoken = read_spoken(options.conversation, conversation)
        if record.config.finetune_text:
            told = replace(conversation, transcript=np.array(spoken.words), speaker_names=np.array(spoken.speakers))
            conversation = finetune.retold(folder, record, told, _device(options.device))
        extraction.refuse_other_features(options.conversation, conversation.extraction, settings)
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
        data = talk(conversation.name, made, probabilities, model.label_names, spoken, out.parent)
        write_whole(out, lambda file: file.write(data))
    else:
        text = _csv(rows) if kind == ".csv" else json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        write_whole(out, lambda file: file.write(text.encode(errors="backslashreplace")))
    sys.stdout.flush()
    _note(conversation, notes)
    if kind == ".html":
        return
    arguments = (probabilities, conversation.speakers, model.label_names, conversation.name)
    if report.attempt(report.timeline, picture, *arguments):
        print(f"timeline: {picture}", file=sys.stderr)


def _stream(options: argparse.Namespace) -> None:
    if options.out is not None:
        raise UserError("--out: --stream answers on the standard output, and draws no timeline")
    if RunFolder(options.folder).record().config.finetune_text:
        raise UserError("--stream reads features, but the run makes those of text from words; give it a CONVERSATION")
    model = load(options.folder, _device(options.device))
    lines = sys.stdin.buffer if options.conversation is None else lines_of(options.conversation)
    for row in answers(model, lines, lambda line: print(line, file=sys.stderr, flush=True)):
        print(json.dumps(row, ensure_ascii=False), flush=True)


def _export(options: argparse.Namespace) -> None:
    names = {"hub": "hub"} | {to: f"predictor{suffix}" for to, suffix in SUFFIXES.items()}
    out: Path = options.out or options.folder / names[options.to]
    if out.exists():
        raise UserError(f"{out} exists; move it away, or give another --out")
    model = load(options.folder)
    if options.to == "hub":
        share(options.folder, out)
        print(f"{out}: config.json, model.safetensors, metrics.json and the card README.md")
    else:
        difference = export(model, options.to, out)
        widths = ", ".join(f"{modality} {dim}" for modality, dim in model.dims.items())
        print(f"{out}: {widths}, speakers, utterance_mask → probabilities of {', '.join(model.label_names)}")
        print(f"tried on made-up dialogues: at most {difference:.0e} from the model's own probabilities")


def _ablate(options: argparse.Namespace) -> None:
    config = load_preset(options.preset) if options.preset else _default_config(options.data)
    for name, value in (("--seeds", options.seeds), ("--jobs", options.jobs)):
        if value is not None and value < 1:
            raise UserError(f"{name}: expected at least 1, got {value}")
    corpus = _corpus(options.data)
    config = config.changed(parse_settings(options.set))
    if config.finetune_text:
        raise UserError("finetune_text: merc ablate compares on features as they are; fine-tune with merc train")
    ablation = cells.Ablation(
        corpus=corpus,
        config=config,
        rows=rows.chosen(options.rows),
        seeds=options.seeds,
        folds=options.folds,
        device=str(_device(options.device)),
        folder=options.out or Path("ablations") / (corpus.name + (f"-{options.folds}-folds" if options.folds else "")),
    )
    cells.run(ablation, options.jobs or cores(), lambda line: print(f"merc ablate: {line}", file=sys.stderr))
    print(results.write(ablation), end="")
    if options.data is None:
        print(f"\n{_MADE_UP}")
    print(f"\ntable: {ablation.folder / 'results.md'}")


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


def _short_findings(corpus: Corpus, path: Path) -> None:
    findings = examine(corpus)
    for finding in findings:
        if finding.misleads:
            print(f"misleads: {finding.text}")
    if findings:
        print(f"findings: {len(findings)}; merc doctor {path} lists them")


def _doctor(options: argparse.Namespace) -> int:
    findings = examine(Corpus.load(options.corpus))
    for finding in findings:
        print(f"{'misleads' if finding.misleads else 'note'}: {finding.text}")
    if not findings:
        print("nothing was found")
    return int(any(finding.misleads for finding in findings))


def _info(options: argparse.Namespace) -> None:
    print(f"merc-kdc {merc_kernels.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "triton", "numpy", "scikit-learn", "safetensors", "matplotlib"):
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package} not installed")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"devices: cpu ({torch.get_num_threads()} threads)" + "".join(f", {name}" for name in devices))
    for name, state in merc_kernels.backends().items():
        print(f"backend {name}: {state}")
    for line in _defaults():
        print(line)
    if options.check and subprocess.run([sys.executable, "-m", "merc_kernels.check"], check=False).returncode:
        raise UserError("a backend that is on has wrong values, or broke off; the lines above say which")


def _defaults() -> Iterator[str]:
    """What a call without ``backend=`` takes here, on this machine's devices and on the kinds of GPU there are."""
    here: list[tuple[str, tuple[int, int] | None]] = [("cpu", None)]
    if torch.cuda.is_available():
        here.append(("cuda", torch.cuda.get_device_capability()))
    else:
        here += [("cuda", capability) for capability in ((7, 5), (8, 0), (9, 0))]
    for device, capability in here:
        place = device if capability is None else f"{device}, sm_{capability[0]}{capability[1]}"
        for operator, sizes, width in (("focal_contrastive", (512, 2048, 16384), 256), ("kd_divergence", (512,), 7)):
            for count in sizes:
                name, reason = merc_kernels.default_backend(
                    operator, device=device, dtype=torch.bfloat16, rows=count, width=width, capability=capability
                )
                yield f"default of {operator} on {place}, {count} x {width}, bfloat16: {name} ({reason})"


def _free(path: Path) -> Path:
    """``path``, or a numbered name beside it that nothing has yet."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(free for free in itertools.chain((path,), numbered) if not free.exists())


def _default_config(data: Path | None) -> Config:
    return load_preset("synthetic" if data is None else "iemocap")


def _corpus(path: Path | None) -> Corpus:
    return synthetic() if path is None else Corpus.load(path)


def _split(corpus: Corpus, config: Config) -> Corpus:
    """The corpus with a validation set where the epoch is chosen; else all training dialogues are trained on."""
    return corpus if config.select_on == "last" else corpus.with_validation(config.validation_fraction)


def _note(corpus: Corpus, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"{corpus.name}: {line}", file=sys.stderr)


def _modalities(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in MODALITIES:
            raise argparse.ArgumentTypeError(f"expected modalities such as {','.join(MODALITIES[1:])}, got {name!r}")
    return names


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: cannot be used here (merc info lists the devices): {str(error).splitlines()[0]}"
        ) from None
    return device


def _print_metrics(metrics: dict[str, Any]) -> None:
    for name in ("weighted_f1", "macro_f1", "accuracy", "uar"):
        print(f"{name:>16}  {metrics[name]:.4f}")
    for label, score in metrics["f1"].items():
        print(f"{'f1 ' + label:>16}  {score:.4f}")
    print(f"{'utterances':>16}  {metrics['utterances']}")


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

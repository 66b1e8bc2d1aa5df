"""``merc export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from merc_model.checkpoint import ENCODER, RunFolder, load
from merc_model.errors import UserError
from merc_model.export import SUFFIXES, export, share


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """What the command of ``merc`` takes."""
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


def _export(options: argparse.Namespace) -> None:
    names = {"hub": "hub"} | {to: f"predictor{suffix}" for to, suffix in SUFFIXES.items()}
    out: Path = options.out or options.folder / names[options.to]
    if out.exists():
        raise UserError(f"{out} exists; move it away, or give another --out")
    model = load(options.folder)
    if options.to == "hub":
        share(options.folder, out)
        encoder = f"{ENCODER}/, " if RunFolder(out).encoder.is_dir() else ""
        print(f"{out}: config.json, model.safetensors, metrics.json, {encoder}and the card README.md")
    else:
        difference = export(model, options.to, out)
        widths = ", ".join(f"{modality} {dim}" for modality, dim in model.dims.items())
        print(f"{out}: {widths}, speakers, utterance_mask → probabilities of {', '.join(model.label_names)}")
        print(f"tried on made-up dialogues: at most {difference:.0e} from the model's own probabilities")

"""What the options of a command name: device, configuration, corpus."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from merc_model.config import Config, load_preset, parse_settings
from merc_model.data.corpus import Corpus
from merc_model.data.synthetic import synthetic
from merc_model.errors import UserError


def device_of(name: str) -> torch.device:
    """The device of ``--device``, or a UserError where it cannot be used; auto: cuda where there is one."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: cannot be used here (merc info lists the devices): {str(error).splitlines()[0]}"
        ) from None
    return device


def corpus_of(path: Path | None) -> Corpus:
    """The corpus of a file; None: the embedded one."""
    return synthetic() if path is None else Corpus.load(path)


def with_validation(corpus: Corpus, config: Config) -> Corpus:
    """The corpus with a validation set where the epoch is chosen; else all training dialogues are trained on."""
    return corpus if config.select_on == "last" else corpus.with_validation(config.validation_fraction)


def config_of(options: argparse.Namespace) -> Config:
    """The configuration that ``--preset`` and ``--set`` name; without a preset the one for the kind of corpus."""
    name = options.preset or ("synthetic" if options.data is None else "iemocap")
    return load_preset(name).changed(parse_settings(options.set))

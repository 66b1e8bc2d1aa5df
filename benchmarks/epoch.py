"""epoch: MERC-KDC trained on the embedded corpus, one epoch.

The providers are our backends, forced on both losses; the trainer takes no others. There is no float64 here: what is
checked is the loss of the epoch, against the same training on the reference backend. The floor is the same epoch with
neither distillation nor contrastive loss.
"""

import contextlib
import functools
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import merc_kernels
from benchmarks.cell import Cell, Floor, Problem, Provider
from benchmarks.training_step import SUBJECT as STEP
from merc_model.config import load_preset
from merc_model.data.corpus import Corpus
from merc_model.data.synthetic import synthetic
from merc_model.training import Training


class Epoch(Problem):
    """The whole training; its value is the loss."""

    def __init__(self, provider: Provider, device: str, dialogues: int, settings: Mapping[str, Any]) -> None:
        super().__init__(provider, "", torch.zeros(0), ())
        self._device, self._dialogues, self._settings = device, dialogues, settings

    def both(self) -> Tensor:
        """The loss at the end."""
        assert self.provider.loss is not None
        config = load_preset("synthetic").changed({"epochs": 1, **self._settings})
        with self.provider.loss(), contextlib.redirect_stderr(io.StringIO()):
            training = Training(_corpus(self._dialogues), config, 0, torch.device(self._device))
            for _ in training.epochs():
                pass
        return torch.tensor(training.history[-1]["loss"])

    def result(self) -> tuple[float, Tensor]:
        """The loss; there is no one gradient."""
        return float(self.both()), torch.zeros(0)


class EpochSubject:
    """The subject."""

    name = "epoch"
    floor_is = "the same epoch with neither distillation nor contrastive loss"
    limit: Mapping[str, float] = {"float32": 1e-2}

    def cells(self, scale: str, device: str) -> list[Cell]:
        """The embedded corpus; a part of it for the quick scale."""
        dialogues = 8 if scale == "quick" else 72
        all_that_differ = None if device == "cpu" else ("merc", "fused")
        some = ("merc", "merc:torch") if scale == "quick" else all_that_differ
        return [Cell(self.name, {"rows": dialogues}, providers=some, seconds=0.1 if scale == "quick" else 4.0)]

    def providers(self, device: str) -> list[Provider]:
        ours = [provider for provider in STEP.providers(device) if provider.name.startswith("merc")]
        return [p if p.absent else replace(p, loss=_use(p.name)) for p in ours]

    def work(self, cell: Cell) -> float:
        return float(cell.sizes["rows"])

    def problem(self, cell: Cell, provider: Provider, device: str, rows: int | None = None) -> Problem:
        return Epoch(provider, device, rows or cell.sizes["rows"], {})

    def truth(self, cell: Cell, device: str) -> tuple[float, Tensor | None, int]:
        """The reference backend's loss."""
        rows = cell.sizes["rows"]
        plain = Provider("merc:reference", _use("merc:reference"))
        return Epoch(plain, device, rows, {}).result()[0], None, rows

    def floor(self, cell: Cell, device: str) -> Floor:
        """Without the losses."""
        without = {"kd": False, "feature_kd": False, "fcl": False}
        plain = Provider("nothing", contextlib.nullcontext)
        return Floor(Epoch(plain, device, cell.sizes["rows"], without).both, {"both": 1.0})


def _use(name: str) -> Any:
    backend = name.removeprefix("merc").removeprefix(":")
    return functools.partial(merc_kernels.use_backend, backend) if backend else contextlib.nullcontext


@functools.cache
def _corpus(dialogues: int) -> Corpus:
    return synthetic(dialogues=dialogues)


SUBJECT = EpochSubject()

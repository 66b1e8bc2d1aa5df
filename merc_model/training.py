"""The trainer: teacher, students and fusion learn together, an ordinary loop over epochs that can stop and go on.

An epoch depends on the weights, the optimizer and (seed, epoch) alone: the random state is set anew at its start. So a
run that was interrupted and resumed ends where an uninterrupted one would.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from merc_model.config import Config
from merc_model.data.arrays import worst_column
from merc_model.data.batch import Batch, alike_in_length, batches, collate
from merc_model.data.corpus import Corpus
from merc_model.data.outliers import refuse_outliers, typical
from merc_model.encoders import Standardize
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, check_features, predict
from merc_model.model import MercModel
from merc_model.objective import Objective
from merc_model.ranks import Ranks
from merc_model.size import build

_SECONDS_BETWEEN_LINES = 30.0

State = dict[str, Any]


def fit_training_rows(standardize: Standardize, corpus: Corpus, modality: str) -> None:
    """Give ``standardize`` the statistics of the training rows; a UserError where these are missing, or absurd."""
    places = corpus.rows(corpus.dialogues("train"))
    rows = corpus.features[modality][places]
    known = rows[~np.isnan(rows).any(axis=1)]
    if not len(known):
        why = worst_column(rows)
        raise UserError(f"corpus {corpus.name}: {modality} is missing in every training row{why}; leave it out")
    refuse_outliers(corpus, modality, places, *typical(known))
    standardize.fit(torch.from_numpy(rows))


class Training:
    """Trains a model on a corpus.

    Args:
        corpus: with text, with training dialogues and, if the epoch is chosen on it, with a validation set.
        config: every choice.
        seed: of the weights, the order of the dialogues and dropout.
        device: where to train.
        ranks: the processes that train together, all with the same of the above but for the device.

    Attributes:
        model: the network; after `epochs` has run to its end, the running average that is kept.
        history: one dict an epoch.
        seconds: spent in training.

    Raises:
        UserError: nothing to train on, or nothing to choose the epoch on.
    """

    def __init__(
        self, corpus: Corpus, config: Config, seed: int, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        self.ranks = ranks or Ranks()
        self.corpus, self.config, self.seed, self.device = corpus, config, seed, device
        self.dialogues = {split: corpus.dialogues(split) for split in ("train", "valid", "test")}
        needed = {"train": "to train on"}
        if config.select_on != "last":
            needed[config.select_on] = "to choose the epoch on"
        for split, purpose in needed.items():
            if not corpus.class_counts(self.dialogues[split]).sum():
                raise UserError(f"corpus {corpus.name}: no labelled utterance in split {split!r}, {purpose}")
        torch.manual_seed(seed)
        self.model = build(corpus.dims, corpus.label_names.tolist(), config, device, copies=6)
        for modality in self.model.modalities:
            fit_training_rows(self.model.standardize(modality), corpus, modality)
        check_features(self.model, corpus, np.arange(len(corpus.split)))
        for batch in batches(corpus, self.dialogues["train"], 16, torch.device("cpu")):
            self.model.remember(batch)
        self.model.fit_linear(batches(corpus, self.dialogues["train"], 16, torch.device("cpu")))
        counts = torch.from_numpy(corpus.class_counts(self.dialogues["train"]))
        self.model.log_prior.copy_((counts.clamp_min(1) / counts.sum()).log())
        self.model.to(device)
        self.objective = Objective(config, counts, self.ranks).to(device)
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._epoch, self._finished = 0, False
        self._best: dict[str, Any] = {"score": -1.0, "epoch": 0, "weights": {}}
        self._parameters = list(self.model.parameters())
        matrices = [parameter for parameter in self._parameters if parameter.dim() > 1]
        vectors = [parameter for parameter in self._parameters if parameter.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        average = get_ema_multi_avg_fn(config.average_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self.model, multi_avg_fn=average)
        self._average.eval()

    @property
    def averaged(self) -> MercModel:
        """The running average of the weights so far, in evaluation mode: the teacher, and what is kept."""
        return cast(MercModel, self._average.module)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train to the end, yielding the history's row after each epoch; `state` is consistent there."""
        total, told = self.config.epochs, time.monotonic()
        hidden = None if self.ranks.first else True
        with tqdm(total=total, initial=self._epoch, desc="training", unit="epoch", disable=hidden) as bar:
            while self._epoch < total:
                row = self._run_epoch()
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                bar.update()
                silent = bar.disable and self.ranks.first  # no terminal: a line now and then
                if silent and time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    tqdm.write(f"training: epoch {self._epoch} of {total}, loss {row['loss']:.3f}", file=sys.stderr)
                yield row
        if self._finished:
            return
        if self.config.select_on == "last":
            self.model.load_state_dict(self.averaged.state_dict())
        else:
            self.model.load_state_dict(self._best["weights"])
            chosen = f"epoch {self._best['epoch']} of {total}, weighted F1 {self._best['score']:.4f}"
            if self.ranks.first:
                tqdm.write(f"training: {chosen} on {self.config.select_on}", file=sys.stderr)
        self._finished = True

    def state(self) -> State:
        """Everything that `restore` needs, tensors and plain values only."""
        return {
            "epoch": self._epoch,
            "finished": self._finished,
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "history": self.history,
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Go on from a `state`; a LookupError, TypeError, ValueError or RuntimeError where it does not fit."""
        self._epoch, self._finished = state["epoch"], state["finished"]
        if not 0 <= self._epoch <= self.config.epochs:
            raise ValueError(f"epoch {self._epoch}")
        for weights in (state["best"]["weights"] or state["model"], state["model"]):  # that both fit
            self.model.load_state_dict(weights)
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best, self.history, self.seconds = state["best"], state["history"], state["seconds"]

    def metrics(self, split: str) -> dict[str, dict[str, Any]]:
        """Head → metrics of the model on a split; no head where it has no labelled utterance."""
        if not self.corpus.class_counts(self.dialogues[split]).sum():
            return {}
        predictions = predict(self.model, self.corpus, self.dialogues[split])
        return {head: predictions.metrics(self.model.label_names, head) for head in predictions.probabilities}

    def _run_epoch(self) -> dict[str, Any]:
        started = time.perf_counter()
        seed = np.random.SeedSequence((self.seed, self._epoch)).generate_state(2, np.uint64)
        torch.manual_seed(int(seed[0]))
        train = self.dialogues["train"]
        parts = alike_in_length(self.corpus, train, self.config.batch_dialogues, np.random.default_rng(seed[1]))
        self.model.train()
        sums: dict[str, Tensor] = {}
        for step, part in enumerate(parts):
            share = (self._epoch + step / len(parts)) / self.config.epochs
            self._set_learning_rate(share)
            for name, value in self._step(collate(self.corpus, part).to(self.device), share).items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value
        self._epoch += 1
        means = {name: float(value) / len(parts) for name, value in sums.items()}
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"epoch {self._epoch}: the loss is {means['loss']}; lower learning_rate or the weights of the losses"
            )
        row = {"epoch": self._epoch, **means, **self._scores()}
        seconds = time.perf_counter() - started
        self.seconds += seconds
        row |= {"learning_rate": self._optimizer.param_groups[0]["lr"], "seconds": round(seconds, 3)}
        self.history.append(row)
        return row

    def _step(self, batch: Batch, share: float) -> dict[str, Tensor]:
        whole, batch = batch, self._thinned(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses: dict[str, Tensor] = self.objective(self.model, self.averaged, batch, whole=whole, share=share)
        self._optimizer.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        self.ranks.average(self._parameters)
        nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        self._optimizer.step()
        self._average.update_parameters(self.model)
        return {name: value.detach() for name, value in losses.items()}

    def _thinned(self, batch: Batch) -> Batch:
        """The batch, some of whose dialogues have lost a modality or more, but never all."""
        modalities = self.model.modalities
        if not self.config.modality_dropout or len(modalities) < 2:
            return batch
        lost = torch.rand(len(batch.labels), len(modalities)) < self.config.modality_dropout
        lost &= ~lost.all(dim=1, keepdim=True)
        for modality, dialogues in zip(modalities, lost.to(self.device).unbind(dim=1), strict=True):
            batch = batch.without(modality, dialogues)
        return batch

    def _set_learning_rate(self, share: float) -> None:
        """A linear rise over the warm-up, then a cosine to zero."""
        warmup = self.config.warmup
        if share < warmup:
            scale = max(share / warmup, 0.01)
        else:
            scale = 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * scale

    def _scores(self) -> dict[str, float]:
        """Weighted F1 on the set that the epoch is chosen on, if it is; the best weights are kept."""
        split = self.config.select_on
        if split == "last":
            return {}
        predictions = predict(self.averaged, self.corpus, self.dialogues[split])
        score: float = predictions.metrics(self.model.label_names, FUSED)["weighted_f1"]
        if score > self._best["score"]:
            weights = {name: value.clone() for name, value in self.averaged.state_dict().items()}
            self._best = {"score": score, "epoch": self._epoch, "weights": weights}
        return {f"{split}_weighted_f1": score}

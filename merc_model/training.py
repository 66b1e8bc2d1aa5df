"""The trainer: three stages, each an ordinary loop over epochs that can stop after any of them and go on.

An epoch depends on the weights, the optimizer and (seed, stage, epoch) alone: the random state is set anew at its
start. So a run that was interrupted and resumed ends where an uninterrupted one would.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from merc_model.config import TEACHER, Config
from merc_model.data.batch import Batch, batches
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, predict
from merc_model.model import MercModel
from merc_model.objective import Objective

State = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One of teacher, student_audio, student_visual, fusion.

    Attributes:
        name: as metrics.json and history.jsonl call it.
        head: whose weighted F1 on the validation set chooses the epoch.
        trained: module → what the learning rate is multiplied by; all other modules stay frozen.
        losses: batch → the objective's dict.
    """

    name: str
    head: str
    trained: dict[nn.Module, float]
    losses: Callable[[Batch], dict[str, Tensor]]

    @property
    def kind(self) -> str:
        """The stage's entry in ``seconds``: teacher, students or fusion."""
        return "students" if self.name.startswith("student") else self.name


def stages(model: MercModel, objective: Objective, config: Config) -> list[Stage]:
    """Teacher, then each student, then the fusion of all (after TelME and MAGTKD); the early control has one."""

    def alone(modality: str) -> dict[nn.Module, float]:
        return {model.encoders[modality]: 1.0, model.heads[modality]: 1.0}

    def student(modality: str) -> Stage:
        return Stage(
            f"student_{modality}",
            modality,
            alone(modality),
            lambda batch: objective.student(model, modality, batch),
        )

    slow = config.encoder_learning_rate_scale
    fusion: dict[nn.Module, float] = dict.fromkeys(model.children(), 1.0)
    fusion |= {model.encoders: slow, model.heads: slow}
    last = Stage("fusion", FUSED, fusion, lambda batch: objective.fusion(model, batch))
    if config.fusion == "early":
        return [last]
    return [
        Stage("teacher", TEACHER, alone(TEACHER), lambda batch: objective.teacher(model, batch)),
        *(student(modality) for modality in model.students),
        last,
    ]


class Training:
    """Trains a model on a corpus.

    Args:
        corpus: with text, and with training and validation dialogues.
        config: every choice.
        seed: of the weights, the order of the dialogues and dropout.
        device: where to train.

    Attributes:
        model: the network; after `epochs` has run to its end, the chosen one.
        history: one dict an epoch.
        stage_metrics: stage → metrics of its head on the test set, when the stage ended.
        seconds: teacher, students, fusion → time spent.

    Raises:
        UserError: nothing to train on.
    """

    def __init__(self, corpus: Corpus, config: Config, seed: int, device: torch.device) -> None:
        self.corpus, self.config, self.seed, self.device = corpus, config, seed, device
        self.dialogues = {split: corpus.dialogues(split) for split in ("train", "valid", "test")}
        for split, needed_for in (("train", "to train on"), (config.select_on, "to choose the epoch on")):
            if not corpus.class_counts(self.dialogues[split]).sum():
                raise UserError(f"corpus {corpus.name}: no labelled utterance in split {split!r}, {needed_for}")
        torch.manual_seed(seed)
        self.model = MercModel(corpus.dims, corpus.label_names.tolist(), config)
        training_rows = corpus.rows(self.dialogues["train"])
        for modality in self.model.modalities:
            rows = torch.from_numpy(corpus.features[modality][training_rows])
            if rows.isnan().any(dim=1).all():
                raise UserError(f"corpus {corpus.name}: {modality} is missing in every training row; leave it out")
            self.model.standardize(modality).fit(rows)
        self.model.to(device)
        counts = torch.from_numpy(corpus.class_counts(self.dialogues["train"]))
        self.objective = Objective(config, counts).to(device)
        self.stages = stages(self.model, self.objective, config)
        self.history: list[dict[str, Any]] = []
        self.stage_metrics: dict[str, dict[str, Any]] = {}
        self.seconds = dict.fromkeys(("teacher", "students", "fusion"), 0.0)
        self._stage, self._epoch = 0, 0
        self._best: dict[str, Any]
        self._optimizer: torch.optim.Optimizer
        self._average: AveragedModel
        self._start_stage()

    @property
    def finished(self) -> bool:
        """Whether every stage has ended."""
        return self._stage == len(self.stages)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train to the end, yielding the history's row after each epoch; `state` is consistent there."""
        while not self.finished:
            stage = self.stages[self._stage]
            with tqdm(
                total=self.config.epochs, initial=self._epoch, desc=stage.name, unit="epoch", disable=None
            ) as bar:
                while not self._stage_over():
                    row = self._run_epoch(stage)
                    bar.set_postfix(loss=f"{row['loss']:.3f}", best_f1=f"{self._best['score']:.3f}")
                    bar.update()
                    yield row
            chosen = f"epoch {self._best['epoch']} of {self._epoch}, weighted F1 {self._best['score']:.4f}"
            tqdm.write(f"{stage.name}: {chosen} on {self.config.select_on}", file=sys.stderr)
            self._end_stage(stage)

    def state(self) -> State:
        """Everything that `restore` needs, tensors and plain values only."""
        return {
            "stage": self._stage,
            "epoch": self._epoch,
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "history": self.history,
            "stage_metrics": self.stage_metrics,
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Go on from a `state`."""
        self._stage, self._epoch = state["stage"], state["epoch"]
        self.model.load_state_dict(state["model"])
        self._start_stage()
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best, self.history = state["best"], state["history"]
        self.stage_metrics, self.seconds = state["stage_metrics"], state["seconds"]

    def _start_stage(self) -> None:
        self._best = {"score": -1.0, "epoch": 0, "weights": {}}
        stage = self.stages[min(self._stage, len(self.stages) - 1)]
        self.model.requires_grad_(False)
        groups = []
        for module, scale in stage.trained.items():
            module.requires_grad_(True)
            groups.append({"params": list(module.parameters()), "lr": self.config.learning_rate * scale})
        if stage.head == FUSED:
            self.model.prototypes.requires_grad_(True)
            groups.append({"params": [self.model.prototypes], "lr": self.config.learning_rate})
        self._optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay)
        for group in self._optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        average = get_ema_multi_avg_fn(self.config.average_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self.model, multi_avg_fn=average)

    def _stage_over(self) -> bool:
        waited = self._epoch - self._best["epoch"]
        return self._epoch >= self.config.epochs or waited >= self.config.patience

    def _end_stage(self, stage: Stage) -> None:
        self.model.load_state_dict(self._best["weights"])
        if self.corpus.class_counts(self.dialogues["test"]).sum():
            self.stage_metrics[stage.name] = self.metrics("test", stage.head)
        self._stage, self._epoch = self._stage + 1, 0
        self._start_stage()

    def metrics(self, split: str, head: str = FUSED) -> dict[str, Any]:
        """Metrics of one head of the model on a split."""
        return predict(self.model, self.corpus, self.dialogues[split]).metrics(self.model.label_names, head)

    def _run_epoch(self, stage: Stage) -> dict[str, Any]:
        started = time.perf_counter()
        seed = np.random.SeedSequence((self.seed, self._stage, self._epoch)).generate_state(2, np.uint64)
        torch.manual_seed(int(seed[0]))
        order = np.random.default_rng(seed[1]).permutation(self.dialogues["train"])
        self.model.eval()
        for module in stage.trained:
            module.train()
        steps = math.ceil(len(order) / self.config.batch_dialogues)
        sums: dict[str, Tensor] = {}
        for step, batch in enumerate(batches(self.corpus, order, self.config.batch_dialogues, self.device)):
            self._set_learning_rate(self._epoch + step / steps)
            for name, value in self._step(stage, batch).items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value
        self._epoch += 1
        means = {name: float(value) / steps for name, value in sums.items()}
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"stage {stage.name}, epoch {self._epoch}: the loss is {means['loss']};"
                " lower learning_rate or the weights of the losses"
            )
        score = self._validate(stage)
        seconds = time.perf_counter() - started
        self.seconds[stage.kind] += seconds
        row = {
            "stage": stage.name,
            "epoch": self._epoch,
            **means,
            f"{self.config.select_on}_weighted_f1": score,
        }
        row |= {"learning_rate": self._optimizer.param_groups[0]["lr"], "seconds": round(seconds, 3)}
        self.history.append(row)
        return row

    def _step(self, stage: Stage, batch: Batch) -> dict[str, Tensor]:
        if stage.head == FUSED and self.config.modality_dropout:
            for modality in self.model.students:
                lost = torch.rand(len(batch.labels)) < self.config.modality_dropout
                batch = batch.without(modality, lost.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses = stage.losses(batch)
        self._optimizer.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self._optimizer.step()
        self._average.update_parameters(self.model)
        return {name: value.detach() for name, value in losses.items()}

    def _set_learning_rate(self, epoch: float) -> None:
        """A linear rise over the warm-up, then a cosine to zero."""
        share = epoch / self.config.epochs
        warmup = self.config.warmup
        if share < warmup:
            scale = max(share / warmup, 0.01)
        else:
            scale = 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale

    def _validate(self, stage: Stage) -> float:
        averaged = cast(MercModel, self._average.module)
        predictions = predict(averaged, self.corpus, self.dialogues[self.config.select_on])
        score: float = predictions.metrics(self.model.label_names, stage.head)["weighted_f1"]
        if score > self._best["score"]:
            weights = {name: value.clone() for name, value in averaged.state_dict().items()}
            self._best = {"score": score, "epoch": self._epoch, "weights": weights}
        return score

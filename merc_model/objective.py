"""What training minimises: a dict of ``*_loss`` terms with their weighted total under ``loss``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merc_kernels import class_balanced_weights, distributed, kd_divergence
from merc_model.config import IGNORE_INDEX, TEACHER, Config
from merc_model.data.batch import Batch
from merc_model.model import MercModel, Output
from merc_model.ranks import Ranks


class Objective(nn.Module):
    """The losses.

    Args:
        config: weights and switches.
        class_counts: ``(C,)`` labelled training utterances of each class.
        ranks: the processes that train together.
    """

    ce_weights: Tensor

    def __init__(self, config: Config, class_counts: Tensor, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.config, self.ranks = config, ranks or Ranks()
        self.register_buffer("ce_weights", class_balanced_weights(class_counts, config.class_balance))
        self.contrastive = distributed.FocalContrastiveLoss(
            temperature=config.fcl_temperature,
            gamma=config.fcl_gamma,
            focal=config.fcl_focal,
            class_weights=class_balanced_weights(class_counts, config.fcl_class_balance),
            prototype_anchors=config.elcl and config.prototype_anchors,
            ignore_index=IGNORE_INDEX,
        )

    def forward(
        self, model: MercModel, teacher: MercModel, batch: Batch, *, whole: Batch | None = None, share: float = 1.0
    ) -> dict[str, Tensor]:
        """The terms for a batch.

        Args:
            model: what learns.
            teacher: the running average of ``model``, in evaluation mode: its text path teaches the students.
            batch: dialogues.
            whole: the same before they lost modalities, for the teacher.
            share: of the training that is done; distillation grows with it, as the teacher does.
        """
        part = self.ranks.part(batch)
        with self.ranks.own_random(share):
            output = model(part)
        output = self._gathered(output, len(batch.labels))
        terms = {"ce_loss": (1.0, self._cross_entropy(output.logits, batch))}
        if output.modality_logits:
            heads = [self._cross_entropy(logits, batch) for logits in output.modality_logits.values()]
            terms["modality_ce_loss"] = (self.config.modality_ce_weight, torch.stack(heads).sum())
            if model.students and (self.config.kd or self.config.feature_kd):
                terms |= self._distillation(output, teacher, whole or batch, min(1.0, share / self.config.kd_warmup))
        if self.config.fcl:  # gathers what it needs
            contrastive = self.contrastive(
                output.embeddings.flatten(0, 1),
                part.labels.flatten(),
                prototypes=model.prototypes if self.config.elcl else None,
            )
            terms["fcl_loss"] = (self.config.fcl_weight, contrastive)
        total = torch.stack([weight * term for weight, term in terms.values()]).sum()
        return {**{name: term.detach() for name, (_, term) in terms.items()}, "loss": total}

    def _distillation(
        self, output: Output, teacher: MercModel, batch: Batch, scale: float
    ) -> dict[str, tuple[float, Tensor]]:
        """The teacher's responses and relations, for every student; unlabelled utterances are distilled too."""
        with torch.no_grad():
            encoded = teacher.encode(TEACHER, self.ranks.part(batch))
            hidden, logits = (self.ranks.gathered(x, len(batch.labels)) for x in encoded)
        real = batch.utterance_mask
        responses, relations = [], []
        for student in (modality for modality in output.hidden if modality != TEACHER):
            if self.config.kd:
                student_logits = output.modality_logits[student][real]
                responses.append(kd_divergence(student_logits, logits[real], temperature=self.config.kd_temperature))
            if self.config.feature_kd:
                relations.append(self._relation_divergence(output.hidden[student][real], hidden[real]))
        terms = {}
        if responses:
            terms["kd_loss"] = (scale * self.config.kd_weight, torch.stack(responses).sum())
        if relations:
            terms["feature_kd_loss"] = (scale * self.config.feature_kd_weight, torch.stack(relations).sum())
        return terms

    def _gathered(self, output: Output, dialogues: int) -> Output:
        """What the terms look at, of all ranks."""

        def of_all(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {modality: self.ranks.gathered(x, dialogues) for modality, x in tensors.items()}

        logits = self.ranks.gathered(output.logits, dialogues)
        return Output(logits, output.embeddings, of_all(output.modality_logits), of_all(output.hidden))

    def _cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean over the labelled utterances, 0 where there is none."""
        summed = F.cross_entropy(
            logits.flatten(0, 1).float(),
            batch.labels.flatten(),
            weight=self.ce_weights,
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )
        return summed / (batch.labels != IGNORE_INDEX).sum().clamp_min(1)

    def _relation_divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """TelME's: KL between the softmaxed rows of T·Tᵀ and T·Sᵀ, T and S a batch's unit hidden states."""
        student, teacher = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
        temperature = self.config.feature_kd_temperature
        with torch.autocast(student.device.type, enabled=False):
            return kd_divergence(teacher @ student.T, teacher @ teacher.T, temperature=temperature, scale_by_t2=False)

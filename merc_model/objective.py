"""What each stage minimises. Results are dicts of ``*_loss`` terms with their weighted total under ``loss``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merc_kernels import FocalContrastiveLoss, class_balanced_weights, kd_divergence
from merc_model.config import IGNORE_INDEX, TEACHER, Config
from merc_model.data.batch import Batch
from merc_model.model import MercModel


class Objective(nn.Module):
    """The losses of the three stages.

    Args:
        config: weights and switches.
        class_counts: ``(C,)`` labelled training utterances of each class.
    """

    ce_weights: Tensor

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("ce_weights", class_balanced_weights(class_counts, config.class_balance))
        self.contrastive = FocalContrastiveLoss(
            temperature=config.fcl_temperature,
            gamma=config.fcl_gamma,
            focal=config.fcl_focal,
            class_weights=class_balanced_weights(class_counts, config.fcl_class_balance),
            prototype_anchors=config.elcl and config.prototype_anchors,
            ignore_index=IGNORE_INDEX,
        )

    def teacher(self, model: MercModel, batch: Batch) -> dict[str, Tensor]:
        """Stage 1: cross entropy of the text teacher."""
        _, logits = model.encode(TEACHER, batch)
        return self._total({"ce_loss": (1.0, self._cross_entropy(logits, batch))})

    def student(self, model: MercModel, modality: str, batch: Batch) -> dict[str, Tensor]:
        """Stage 2: cross entropy of a student, and the teacher's responses and relations distilled into it.

        The teacher's encoder and head are in evaluation mode here: they are frozen, and predict without dropout.
        """
        hidden, logits = model.encode(modality, batch)
        terms = {"ce_loss": (1.0, self._cross_entropy(logits, batch))}
        if self.config.kd or self.config.feature_kd:
            with torch.no_grad():
                teacher_hidden, teacher_logits = model.encode(TEACHER, batch)
            real = batch.utterance_mask
            if self.config.kd:
                response = kd_divergence(logits[real], teacher_logits[real], temperature=self.config.kd_temperature)
                terms["kd_loss"] = (self.config.kd_weight, response)
            if self.config.feature_kd:
                relation = self._relation_divergence(hidden[real], teacher_hidden[real])
                terms["feature_kd_loss"] = (self.config.feature_kd_weight, relation)
        return self._total(terms)

    def fusion(self, model: MercModel, batch: Batch) -> dict[str, Tensor]:
        """Stage 3: cross entropy of the fused and of each modality's logits, and the contrastive loss."""
        output = model(batch)
        terms = {"ce_loss": (1.0, self._cross_entropy(output.logits, batch))}
        modality_losses = [self._cross_entropy(logits, batch) for logits in output.modality_logits.values()]
        if modality_losses:
            terms["modality_ce_loss"] = (self.config.modality_ce_weight, torch.stack(modality_losses).sum())
        if self.config.fcl:
            contrastive = self.contrastive(
                output.embeddings.flatten(0, 1),
                batch.labels.flatten(),
                prototypes=model.prototypes if self.config.elcl else None,
            )
            terms["fcl_loss"] = (self.config.fcl_weight, contrastive)
        return self._total(terms)

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

    def _total(self, terms: dict[str, tuple[float, Tensor]]) -> dict[str, Tensor]:
        total = torch.stack([weight * term for weight, term in terms.values()]).sum()
        return {**{name: term.detach() for name, (_, term) in terms.items()}, "loss": total}

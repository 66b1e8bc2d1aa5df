"""The MERC-KDC network: an encoder and a head a modality, a fusion, a classifier, label prototypes, a memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from merc_model.config import MODALITIES, TEACHER, Config
from merc_model.data.batch import Batch
from merc_model.early import EarlyFusion
from merc_model.encoders import DialogueEncoder, Features, Standardize
from merc_model.errors import UserError
from merc_model.fusion import MeanFusion, TextLedFusion
from merc_model.linear import LinearEvidence, around
from merc_model.memory import Memory


@dataclass(frozen=True)
class Output:
    """What the network says of a batch.

    Attributes:
        logits: ``(B, L, C)`` of the fused states; in evaluation mode of the students in dialogues without any text,
            adjusted by the prior, with the memory's evidence.
        embeddings: ``(B, L, P)`` fused states through the projection head, for the contrastive loss.
        modality_logits: modality → ``(B, L, C)`` of its own head; empty under early fusion, which has no such heads.
        hidden: modality → ``(B, L, H)`` of its own encoder, likewise.
    """

    logits: Tensor
    embeddings: Tensor
    modality_logits: dict[str, Tensor]
    hidden: dict[str, Tensor]


class MercModel(nn.Module):
    """MERC-KDC, or its control that concatenates the features (``config.fusion``).

    Args:
        dims: modality → width of its features; text must be among them.
        label_names: the C emotions.
        config: the sizes and switches.

    Attributes:
        dims: modality → width of the features it expects.
        causal: whether an utterance sees only itself and what came before it.
        log_prior: ``(C,)`` logarithm of each class's share of the training utterances.

    Raises:
        UserError: no text.
    """

    log_prior: Tensor

    def __init__(self, dims: Mapping[str, int], label_names: Sequence[str], config: Config) -> None:
        super().__init__()
        if TEACHER not in dims:
            raise UserError(f"the corpus has no text, and text is the teacher; it has {', '.join(dims) or 'nothing'}")
        self.modalities = [modality for modality in MODALITIES if modality in dims]
        self.dims = {modality: dims[modality] for modality in self.modalities}
        self.causal = config.causal
        self.label_names = [str(name) for name in label_names]
        hidden, num_classes = config.hidden_dim, len(self.label_names)
        self.features = nn.ModuleDict(
            {m: Features(dims[m], config.speaker_relative and m != TEACHER) for m in self.modalities}
        )
        widths = {modality: self._features(modality).dim for modality in self.modalities}
        encoded = [] if config.fusion == "early" else self.modalities
        self.encoders = nn.ModuleDict({m: DialogueEncoder(widths[m], config.layers, config) for m in encoded})
        self.heads = nn.ModuleDict({m: nn.Linear(hidden, num_classes) for m in encoded})
        self.fusion: EarlyFusion | TextLedFusion | MeanFusion
        if config.fusion == "early":
            self.fusion = EarlyFusion(widths, config)
        else:
            self.fusion = (TextLedFusion if config.text_leading else MeanFusion)(self.modalities, config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(hidden, num_classes)
        self.projection = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, config.projection_dim))
        self.prototypes = nn.Parameter(torch.randn(num_classes, config.projection_dim))
        self.memory = Memory(widths, num_classes, config) if config.memory else None
        self.memory_weight = config.memory_weight
        self.linear = LinearEvidence(widths, num_classes, config) if config.linear else None
        self.linear_weight = config.linear_weight
        self.register_buffer("log_prior", torch.zeros(num_classes))
        self.prior_adjustment = config.prior_adjustment

    @property
    def students(self) -> list[str]:
        """The modalities that learn from text."""
        return [modality for modality in self.modalities if modality != TEACHER]

    def standardize(self, modality: str) -> Standardize:
        """What standardises the features of one modality."""
        return self._features(modality).standardize

    def encode(self, modality: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states ``(B, L, H)`` and logits ``(B, L, C)`` of one modality by itself."""
        batch = self._received(batch)
        return self._encode(modality, self._seen(modality, batch), batch)

    @torch.no_grad()
    def remember(self, batch: Batch) -> None:
        """Put the labelled utterances of a batch into the memory, where there is one."""
        if self.memory is not None:
            batch = self._received(batch)
            self.memory.fill({modality: self._seen(modality, batch) for modality in self.modalities}, batch)

    @torch.no_grad()
    def fit_linear(self, batches: Iterable[Batch]) -> None:
        """Fit the linear model to the labelled utterances of some batches, where there is one."""
        if self.linear is not None:
            inputs, labels = [], []
            for batch in map(self._received, batches):
                seen = {modality: self._seen(modality, batch) for modality in self.modalities}
                inputs.append(around(seen, batch)[batch.utterance_mask])
                labels.append(batch.labels[batch.utterance_mask])
            self.linear.fit(torch.cat(inputs), torch.cat(labels))

    def forward(self, batch: Batch) -> Output:
        """All modalities, fused; one that the batch lacks is missing in every utterance."""
        batch = self._received(batch)
        seen = {modality: self._seen(modality, batch) for modality in self.modalities}
        hidden, modality_logits = {}, {}
        if isinstance(self.fusion, EarlyFusion):
            fused = self.fusion(seen, batch)
        else:
            for modality, rows in seen.items():
                hidden[modality], modality_logits[modality] = self._encode(modality, rows, batch)
            fused = self.fusion(hidden, batch)
        logits = self.classifier(self.dropout(fused))
        if not self.training:
            logits = self._without_leader(logits, modality_logits, batch)
            if self.linear is not None:
                logits = logits + self.linear_weight * batch.heard(TEACHER) * self.linear(seen, batch)
            logits = logits - self.prior_adjustment * self.log_prior
            if self.memory is not None:
                logits = logits + self.memory_weight * self.memory(seen, batch)
        return Output(logits, self.projection(fused), modality_logits, hidden)

    def _without_leader(self, logits: Tensor, modality_logits: dict[str, Tensor], batch: Batch) -> Tensor:
        """``logits``, but without any text in sight the mean of the log-probabilities of the students that are."""
        total, count = torch.zeros_like(logits), torch.zeros_like(logits[..., :1])
        for student in (modality for modality in modality_logits if modality != TEACHER):
            heard = batch.heard(student)
            total = total + heard * modality_logits[student].log_softmax(dim=-1)
            count = count + heard
        led = batch.heard(TEACHER) | (count == 0)
        return torch.where(led, logits, total / count.clamp_min(1))

    def _received(self, batch: Batch) -> Batch:
        """The batch with every modality of the model, and no more to see than the model may."""
        return replace(batch.completed(self.dims), causal=self.causal)

    def _features(self, modality: str) -> Features:
        return cast(Features, self.features[modality])

    def _seen(self, modality: str, batch: Batch) -> Tensor:
        """What the encoder of a modality is given, ``(B, L, D)``."""
        features, present = batch.features[modality], batch.present[modality]
        seen: Tensor = self._features(modality)(features, present, batch.speakers, batch.visible)
        return seen

    def _encode(self, modality: str, seen: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        hidden = self.encoders[modality](seen, batch.present[modality], batch.speakers, batch.visible)
        return hidden, self.heads[modality](self.dropout(hidden))

"""The control: the features of all modalities are concatenated before one encoder; nobody teaches, nobody leads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from merc_model.config import Config
from merc_model.data.batch import Batch
from merc_model.encoders import DialogueEncoder, Standardize


class EarlyFusion(nn.Module):
    """Standardised features of all modalities, 0 where missing, with a flag for each modality → `DialogueEncoder`.

    Args:
        dims: modality → width of its features.
        config: what `DialogueEncoder` reads.
    """

    def __init__(self, dims: Mapping[str, int], config: Config) -> None:
        super().__init__()
        self.standardize = nn.ModuleDict({modality: Standardize(dim) for modality, dim in dims.items()})
        # the encoder's own Standardize is never fitted, and changes nothing
        self.encoder = DialogueEncoder(sum(dims.values()) + len(dims), config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Fused states ``(B, L, H)``."""
        parts = []
        for modality, standardize in self.standardize.items():
            present = batch.present[modality][..., None]
            parts += [torch.where(present, standardize(batch.features[modality]), 0), present]
        mask = batch.utterance_mask
        fused: Tensor = self.dropout(self.encoder(torch.cat(parts, dim=-1), mask, batch.speakers, mask))
        return fused

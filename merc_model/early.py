"""The control: the features of all modalities are concatenated before one encoder; nobody teaches, nobody leads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from merc_model.config import Config
from merc_model.data.batch import Batch
from merc_model.encoders import DialogueEncoder


class EarlyFusion(nn.Module):
    """The features of all modalities, 0 where missing, with a flag for each modality → `DialogueEncoder`.

    Args:
        dims: modality → width of what `Features` gives of it.
        config: layers + fusion_layers are the encoder's; and what `DialogueEncoder` reads.
    """

    def __init__(self, dims: dict[str, int], config: Config) -> None:
        super().__init__()
        layers = config.layers + config.fusion_layers
        self.encoder = DialogueEncoder(sum(dims.values()) + len(dims), layers, config)

    def forward(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        """Fused states ``(B, L, H)`` of modality → features ``(B, L, D)``."""
        parts = [torch.cat((rows, batch.present[modality][..., None]), dim=-1) for modality, rows in features.items()]
        features_and_flags = torch.cat(parts, dim=-1)
        fused: Tensor = self.encoder(features_and_flags, batch.utterance_mask, batch.speakers, batch.visible)
        return fused

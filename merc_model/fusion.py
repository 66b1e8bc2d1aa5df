"""Hidden states of the modalities → one fused state an utterance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from merc_model.attention import CrossModalAttention, DialogueLayer
from merc_model.config import TEACHER, Config
from merc_model.data.batch import Batch


class TextLedFusion(nn.Module):
    r"""Text asks the students over the dialogue, the students ask text, and text takes what gates let in.

    .. math:: h_t' = \mathrm{CrossModal}(h_t, h_m) \ \text{for each student}\ m, \quad
        h_m' = \mathrm{CrossModal}(h_m, h_t), \quad
        out = \mathrm{LN}(h_t' + \sum_m \sigma(W_m [h_m'; h_t']) \odot V_m h_m')

    where the sum runs over the students that the utterance has. Dialogue layers follow. Attention between modalities
    over the dialogue: taken from SDT, where no modality leads.

    Args:
        modalities: those of the model, text among them.
        config: hidden_dim, heads, dropout and fusion_layers are read.
    """

    def __init__(self, modalities: list[str], config: Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        students = [modality for modality in modalities if modality != TEACHER]
        self.from_text = nn.ModuleDict({modality: CrossModalAttention(config) for modality in students})
        self.to_text = nn.ModuleDict({modality: CrossModalAttention(config) for modality in students})
        self.gates = nn.ModuleDict({modality: nn.Linear(2 * dim, dim) for modality in students})
        self.values = nn.ModuleDict({modality: nn.Linear(dim, dim, bias=False) for modality in students})
        self.shared = SharedLayers(config)

    def forward(self, hidden: dict[str, Tensor], batch: Batch) -> Tensor:
        """Fused states ``(B, L, H)`` of modality → hidden ``(B, L, H)``."""
        alone = text = hidden[TEACHER]
        dialogue = batch.speakers, batch.visible
        for modality, attention in self.to_text.items():
            text = attention(text, hidden[modality], *dialogue, batch.present[modality])
        fused = text
        for modality, attention in self.from_text.items():
            student = attention(hidden[modality], alone, *dialogue, batch.present[TEACHER])
            gate = torch.sigmoid(self.gates[modality](torch.cat((student, text), dim=-1)))
            fused = fused + gate * self.values[modality](student) * batch.present[modality][..., None]
        shared: Tensor = self.shared(fused, batch)
        return shared


class MeanFusion(nn.Module):
    """The ablation without a leader: the mean of the modalities that the utterance has, all alike."""

    def __init__(self, modalities: list[str], config: Config) -> None:
        super().__init__()
        self.values = nn.ModuleDict({m: nn.Linear(config.hidden_dim, config.hidden_dim) for m in modalities})
        self.shared = SharedLayers(config)

    def forward(self, hidden: dict[str, Tensor], batch: Batch) -> Tensor:
        """As in `TextLedFusion`."""
        known = torch.stack([batch.present[modality] for modality in self.values], dim=-1)[..., None, :]
        values = torch.stack([value(hidden[modality]) for modality, value in self.values.items()], dim=-1)
        mean = (values * known).sum(dim=-1) / known.sum(dim=-1).clamp_min(1)
        shared: Tensor = self.shared(mean, batch)
        return shared


class SharedLayers(nn.Module):
    """Dialogue layers over the fused states, between two layer norms."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.first_norm, self.last_norm = nn.LayerNorm(config.hidden_dim), nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([DialogueLayer(config) for _ in range(config.fusion_layers)])

    def forward(self, fused: Tensor, batch: Batch) -> Tensor:
        """``(B, L, H)`` of ``(B, L, H)``."""
        fused = self.dropout(self.first_norm(fused))
        for layer in self.layers:
            fused = layer(fused, batch.speakers, batch.visible)
        normed: Tensor = self.last_norm(fused)
        return normed

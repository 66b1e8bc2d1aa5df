"""Hidden states of the modalities → one fused state an utterance.

Text leads: audio and visual shift the text vector by a gated amount of bounded length. Taken from the
attention-based modality shifting of TelME (Yun et al., 2024, https://arxiv.org/abs/2401.12987), which attended across
the batch; here each utterance is fused by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from merc_model.config import TEACHER, Config


class TextLedFusion(nn.Module):
    r"""Text-anchored gated shift.

    .. math:: H = \sum_m \mathrm{ReLU}(W_m [h_m; h_t]) \odot W'_m h_m, \quad
        \alpha = \min(\beta \|h_t\| / \|H\|, 1), \quad out = \mathrm{LN}(h_t + \alpha H)

    where m runs over the other modalities that the utterance has.

    Args:
        modalities: those of the model, text among them.
        config: hidden_dim, shift_limit (β) and dropout are read.
    """

    def __init__(self, modalities: list[str], config: Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        others = [modality for modality in modalities if modality != TEACHER]
        self.gates = nn.ModuleDict({modality: nn.Linear(2 * dim, dim) for modality in others})
        self.values = nn.ModuleDict({modality: nn.Linear(dim, dim, bias=False) for modality in others})
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.shift_limit = config.shift_limit

    def forward(self, hidden: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
        """Fused states ``(B, L, H)`` of modality → hidden ``(B, L, H)`` and modality → present ``(B, L)``."""
        text = hidden[TEACHER]
        shift = torch.zeros_like(text)
        for modality, gate in self.gates.items():
            opened = torch.relu(gate(torch.cat((hidden[modality], text), dim=-1)))
            shift = shift + opened * self.values[modality](hidden[modality]) * present[modality][..., None]
        length = shift.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        scale = (self.shift_limit * text.norm(dim=-1, keepdim=True) / length).clamp_max(1)
        fused: Tensor = self.dropout(self.norm(text + scale * shift))
        return fused


class MeanFusion(nn.Module):
    """The ablation without a leader: the mean of the modalities that the utterance has, all alike."""

    def __init__(self, modalities: list[str], config: Config) -> None:
        super().__init__()
        self.values = nn.ModuleDict({m: nn.Linear(config.hidden_dim, config.hidden_dim) for m in modalities})
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
        """As in `TextLedFusion`."""
        known = torch.stack([present[modality] for modality in self.values], dim=-1)[..., None, :]
        values = torch.stack([value(hidden[modality]) for modality, value in self.values.items()], dim=-1)
        mean = (values * known).sum(dim=-1) / known.sum(dim=-1).clamp_min(1)
        fused: Tensor = self.dropout(self.norm(mean))
        return fused

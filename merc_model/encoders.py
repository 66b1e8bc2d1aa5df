"""One modality of a dialogue → a hidden state an utterance.

Projection + position + speaker embedding + masked dialogue transformer: taken from SDT (Ma et al., 2023,
https://arxiv.org/abs/2310.20494), whose attention lacked the padding mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from merc_model.config import Config


class Standardize(nn.Module):
    """(x − mean) / sd with the statistics of the training rows, which are saved with the weights."""

    mean: Tensor
    sd: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("sd", torch.ones(dim))

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Take the statistics of ``rows`` (U, D), leaving out rows with a NaN; a constant feature keeps sd 1."""
        known = rows[~rows.isnan().any(dim=1)].double()
        sd, mean = torch.std_mean(known, dim=0, correction=0)
        self.mean.copy_(mean)
        self.sd.copy_(torch.where(sd > 1e-6 * mean.abs().clamp_min(1e-6), sd, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features, the same shape."""
        standardized: Tensor = (features - self.mean) / self.sd
        return standardized


def sinusoids(length: int, dim: int, device: torch.device) -> Tensor:
    """``(length, dim)`` sine and cosine positions (Vaswani et al., 2017): no longest dialogue."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class DialogueEncoder(nn.Module):
    """Encodes one modality.

    Args:
        input_dim: D_m, the width of its features.
        config: hidden_dim, layers, heads, dropout and speaker_slots are read.
    """

    def __init__(self, input_dim: int, config: Config) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.standardize = Standardize(input_dim)
        self.project = nn.Linear(input_dim, config.hidden_dim)
        self.missing = nn.Parameter(torch.zeros(config.hidden_dim))
        self.speaker = nn.Embedding(config.speaker_slots, config.hidden_dim)
        nn.init.normal_(self.speaker.weight, std=0.1)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.hidden_dim,
            config.heads,
            dim_feedforward=2 * config.hidden_dim,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(
            layer, config.layers, norm=nn.LayerNorm(config.hidden_dim), enable_nested_tensor=False
        )

    def forward(self, features: Tensor, present: Tensor, speakers: Tensor, utterance_mask: Tensor) -> Tensor:
        """Hidden states ``(B, L, H)`` of features ``(B, L, D_m)``; utterances that are not present are guessed."""
        projected = self.project(self.standardize(features))
        hidden = torch.where(present[..., None], projected, self.missing)
        hidden = hidden + self.speaker(speakers % self.speaker.num_embeddings)
        hidden = hidden + 0.1 * sinusoids(hidden.shape[1], hidden.shape[2], hidden.device)
        # torch's mask is True where a key is padding, ours where an utterance is real
        encoded: Tensor = self.transformer(self.dropout(hidden), src_key_padding_mask=~utterance_mask)
        return encoded

"""One modality of a dialogue → a hidden state an utterance.

Projection and dialogue transformer with a padding mask: taken from SDT (Ma et al., 2023,
https://arxiv.org/abs/2310.20494). Position and speaker stand in the attention (`DialogueAttention`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from merc_model.attention import DialogueLayer
from merc_model.config import Config

_LARGEST = 8.0  # standardised features are clipped here: a burst of noise is no evidence
_PRIOR_ROWS = 2  # how many average rows a speaker's own statistics are mixed with


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
        standardized: Tensor = ((features - self.mean) / self.sd).clamp(-_LARGEST, _LARGEST)
        return standardized


def speaker_relative(features: Tensor, present: Tensor, speakers: Tensor, visible: Tensor) -> Tensor:
    """Features relative to their speaker's own mean and sd in what is visible of the dialogue; 0 where not present.

    Args:
        features: ``(B, L, D)``, standardised.
        present: ``(B, L)`` bool; the other rows do not count.
        speakers: ``(B, L)`` int64.
        visible: ``(B, 1 or L, L)`` bool, of each utterance the others that count.

    Few rows tell little, so the statistics are shrunk towards mean 0 and sd 1.
    """
    features = torch.where(present[..., None], features, 0)
    same = (speakers[:, :, None] == speakers[:, None]) & present[:, None] & visible  # [B, L, L]
    same = same.to(features.dtype)
    count = same.sum(dim=-1, keepdim=True)
    mean = same @ features / count.clamp_min(1)
    deviation = ((same @ features.square()) - count * mean.square()).clamp_min(0)
    sd = ((deviation + _PRIOR_ROWS + 1) / (count + _PRIOR_ROWS + 1)).sqrt()
    relative = (features - mean * count / (count + _PRIOR_ROWS)) / sd
    return torch.where(present[..., None], relative, 0)


class Features(nn.Module):
    """What an encoder sees of a modality: standardised features and, if asked, the same relative to the speaker.

    Args:
        input_dim: D_m, the width of the corpus's features.
        relative: append `speaker_relative`.

    Attributes:
        dim: the width of what comes out.
    """

    def __init__(self, input_dim: int, relative: bool) -> None:
        super().__init__()
        self.relative = relative
        self.standardize = Standardize(input_dim)
        self.dim = 2 * input_dim if relative else input_dim

    def forward(self, features: Tensor, present: Tensor, speakers: Tensor, visible: Tensor) -> Tensor:
        """``(B, L, dim)``, 0 where not present."""
        seen = torch.where(present[..., None], self.standardize(features), 0)
        return torch.cat((seen, speaker_relative(seen, present, speakers, visible)), dim=-1) if self.relative else seen


class DialogueEncoder(nn.Module):
    """Encodes one modality, or several that were concatenated.

    Args:
        input_dim: width of what comes in.
        layers: how many `DialogueLayer` follow the projection.
        config: hidden_dim, heads, dropout and feature_dropout are read.
    """

    def __init__(self, input_dim: int, layers: int, config: Config) -> None:
        super().__init__()
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.project = nn.Linear(input_dim, config.hidden_dim)
        self.missing = nn.Parameter(torch.zeros(config.hidden_dim))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([DialogueLayer(config) for _ in range(layers)])
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, features: Tensor, present: Tensor, speakers: Tensor, visible: Tensor) -> Tensor:
        """Hidden states ``(B, L, H)`` of features ``(B, L, D)``; utterances that are not present are guessed."""
        projected = self.project(self.feature_dropout(features))
        hidden = self.dropout(torch.where(present[..., None], projected, self.missing))
        for layer in self.layers:
            hidden = layer(hidden, speakers, visible)
        encoded: Tensor = self.norm(hidden)
        return encoded

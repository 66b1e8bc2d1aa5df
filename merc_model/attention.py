"""Attention over a dialogue that knows how far apart two utterances are and whether one person spoke both.

The logit of query i and key j gets a learned term for their distance, another where the speaker is the same. At the
start the heads look from the whole dialogue (slope 0) to the next utterances, as the slopes of ALiBi do
(Press et al., 2022, https://arxiv.org/abs/2108.12409).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from merc_model.config import Config

_FARTHEST = 12  # utterances farther apart share a bias
_SLOPES = (0.0, 0.1, 0.3, 1.0)


class DialogueAttention(nn.Module):
    """Multi-head attention of the utterances of a dialogue.

    Args:
        config: hidden_dim and heads are read.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, self.heads = config.hidden_dim, config.heads
        self.query, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        distance = torch.arange(-_FARTHEST, _FARTHEST + 1).abs()
        slopes = torch.tensor([_SLOPES[head % len(_SLOPES)] for head in range(self.heads)])
        self.bias = nn.Parameter((-distance[:, None] * slopes).repeat(2, 1, 1))  # same speaker?, distance, head

    def forward(self, queries: Tensor, keys: Tensor, speakers: Tensor, visible: Tensor) -> Tensor:
        """What ``queries`` (B, L, H) gather from ``keys`` (B, L, H), one row an utterance in both.

        ``visible``, (B, 1 or L, L), has the keys that a query may look at.
        """
        batch, length, dim = queries.shape
        query = self.query(queries).view(batch, length, self.heads, -1).transpose(1, 2)
        key, value = self.key_value(keys).view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) / math.sqrt(dim // self.heads)
        logits = (logits + self._biases(speakers)).masked_fill(~visible[:, None], -math.inf)
        gathered = (logits.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, dim)
        output: Tensor = self.output(gathered)
        return output

    def _biases(self, speakers: Tensor) -> Tensor:
        """``(B, heads, L, L)``."""
        position = torch.arange(speakers.shape[1], device=speakers.device)
        distance = (position[None] - position[:, None]).clamp(-_FARTHEST, _FARTHEST) + _FARTHEST
        other, same = self.bias[:, distance].permute(0, 3, 1, 2)
        return torch.where((speakers[:, :, None] == speakers[:, None])[:, None], same, other)


class DialogueLayer(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a residual path.

    Args:
        config: hidden_dim, heads and dropout are read.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = DialogueAttention(config)
        self.perceptron = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * dim, dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, speakers: Tensor, visible: Tensor) -> Tensor:
        """Hidden states ``(B, L, H)``, with what the dialogue adds to them."""
        normed = self.attention_norm(hidden)
        hidden = hidden + self.dropout(self.attention(normed, normed, speakers, visible))
        updated: Tensor = hidden + self.dropout(self.perceptron(self.perceptron_norm(hidden)))
        return updated


class CrossModalAttention(nn.Module):
    r"""One modality asks another over the dialogue, and takes what a gate lets in.

    .. math:: z = \mathrm{Attention}(x, y), \quad out = x + \sigma(W[x; z]) \odot z

    Args:
        config: hidden_dim, heads and dropout are read.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.query_norm, self.key_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = DialogueAttention(config)
        self.gate = nn.Linear(2 * dim, dim)
        nn.init.constant_(self.gate.bias, -1.0)  # the other modality starts quietly
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, asking: Tensor, asked: Tensor, speakers: Tensor, visible: Tensor, present: Tensor) -> Tensor:
        """``asking`` (B, L, H) with what ``asked`` (B, L, H) adds; ``present`` (B, L) are the utterances that have it.

        Where none of them is visible, nothing is added.
        """
        heard = present[:, None] & visible
        some = heard.any(dim=-1, keepdim=True)  # [B, 1 or L, 1]
        found = self.attention(self.query_norm(asking), self.key_norm(asked), speakers, heard | (visible & ~some))
        gate = torch.sigmoid(self.gate(torch.cat((asking, found), dim=-1)))
        added: Tensor = asking + self.dropout(gate * found) * some
        return added

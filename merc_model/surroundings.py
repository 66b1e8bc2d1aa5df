"""What is said around an utterance: weighted means over others of its dialogue."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merc_model.data.batch import Batch


def mean_around(values: Tensor, batch: Batch, reach: float, *, same_speaker: bool) -> Tensor:
    """Mean ``(B, L, D)`` of ``values`` ``(B, L, D)`` over the speaker's other utterances, or over the other speakers'.

    Weights fall to 1/e over ``reach`` utterances; where there is nothing to average the mean is 0. In a causal batch
    the others are those that came before.
    """
    position = torch.arange(batch.speakers.shape[1], device=batch.speakers.device)
    distance = (position[None] - position[:, None]).abs()
    same = batch.speakers[:, :, None] == batch.speakers[:, None]
    counted = (same & (distance > 0) if same_speaker else ~same) & batch.visible
    weights = (-distance / reach).masked_fill(~counted, -math.inf).softmax(dim=-1)  # [B, L, L]
    return torch.where(counted.any(dim=-1, keepdim=True), weights, 0) @ values

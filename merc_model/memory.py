"""The labelled training utterances, remembered: what was felt where something like this was said before?

An utterance asks the memory with its own features, without its context. Their similarity to those of a remembered
utterance is the weighted mean of the cosines of the modalities, 0 where one is missing; text weighs most, so without
text there is little evidence. As in a contrastive loss, a
softmax of the similarities over the temperature gives each remembered utterance a share, and its label collects it.
The evidence for a class is the logarithm of what the class collects beside its share of the training set. Nearest
neighbours beside a classifier: taken from kNN-LM (Khandelwal et al., 2020, https://arxiv.org/abs/1911.00172).

A feeling lasts: to its own evidence an utterance adds the mean of what its speaker's other utterances in the dialogue
were given, near ones first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merc_model.config import IGNORE_INDEX, TEACHER, Config
from merc_model.data.batch import Batch
from merc_model.surroundings import mean_around

_STUDENT_SHARE = 0.1  # weight of a student's cosine beside 1 for text
_SMOOTHING = 0.1  # bounds what a class that collects nothing loses


class Memory(nn.Module):
    r"""Evidence of the M remembered utterances.

    .. math:: s_j = \frac{\sum_m w_m \cos(x_m, x_{jm})}{\sum_m w_m}, \quad
        e_c = \log\Bigl(\frac{\sum_j [y_j = c]\, e^{s_j / \tau}}{\pi_c \sum_j e^{s_j / \tau}} + 0.1\Bigr), \quad
        e'_i = e_i + \frac{\sum_k e^{-|i - k| / r} e_k}{\sum_k e^{-|i - k| / r}}

    where m runs over the modalities of the model, π is the share of a class in the memory, and k over the other
    utterances of the same speaker in the dialogue, the reach r being ``memory_reach``.

    Args:
        dims: modality → width of its features.
        num_classes: C.
        config: memory_temperature and memory_reach are read.
    """

    labels: Tensor

    def __init__(self, dims: dict[str, int], num_classes: int, config: Config) -> None:
        super().__init__()
        self.modalities, self.num_classes = list(dims), num_classes
        self.temperature, self.reach = config.memory_temperature, config.memory_reach
        for modality, dim in dims.items():
            self.register_buffer(f"{modality}_keys", torch.zeros(0, dim))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    @torch.no_grad()
    def fill(self, features: dict[str, Tensor], batch: Batch) -> None:
        """Remember the labelled utterances of ``batch``, whose modalities have ``features`` (B, L, D)."""
        known = batch.labels != IGNORE_INDEX
        self.labels = torch.cat((self.labels, batch.labels[known]))
        for modality in self.modalities:
            keys = F.normalize(features[modality][known], dim=-1)
            self.register_buffer(f"{modality}_keys", torch.cat((self._keys(modality), keys)))

    def forward(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        """Evidence ``(B, L, C)``; 0 before anything is remembered, the same for all classes where nothing is known."""
        shape = *batch.utterance_mask.shape, self.num_classes
        if not len(self.labels):
            return torch.zeros(shape, device=batch.utterance_mask.device)
        similarity, weight = torch.zeros((), device=batch.utterance_mask.device), 0.0
        for modality in self.modalities:
            share = 1.0 if modality == TEACHER else _STUDENT_SHARE
            similarity = similarity + share * F.normalize(features[modality], dim=-1) @ self._keys(modality).T
            weight += share
        shares = (similarity / (weight * self.temperature)).softmax(dim=-1)  # [B, L, M]
        classes = F.one_hot(self.labels, self.num_classes).to(shares.dtype)
        frequency = classes.mean(dim=0)
        # a class that was never seen collects nothing, and gets no evidence for or against it
        ratio = torch.where(frequency > 0, shares @ classes / frequency.clamp_min(1e-12), 1.0)
        evidence = (ratio + _SMOOTHING).log()
        return evidence + mean_around(evidence, batch, self.reach, same_speaker=True) if self.reach else evidence

    def _keys(self, modality: str) -> Tensor:
        keys: Tensor = getattr(self, f"{modality}_keys")
        return keys

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """As every module's, after making room for as many utterances as were remembered."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape[1:] == buffer.shape[1:]:
                self.register_buffer(name, torch.zeros_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

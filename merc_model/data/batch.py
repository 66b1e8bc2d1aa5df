"""What a batch is, and how batches are cut from a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merc_model.config import IGNORE_INDEX
from merc_model.data.corpus import Corpus


@dataclass(frozen=True)
class Batch:
    """B dialogues padded to L utterances.

    Attributes:
        features: modality → ``(B, L, D_m)`` float32, 0 where absent.
        present: modality → ``(B, L)`` bool, True where the utterance has that modality.
        speakers: ``(B, L)`` int64, an index within the dialogue; 0 at padding.
        labels: ``(B, L)`` int64; -100 where unlabelled and at padding.
        utterance_mask: ``(B, L)`` bool, True = a real utterance.
        causal: whether an utterance sees only itself and what came before it.
    """

    features: dict[str, Tensor]
    present: dict[str, Tensor]
    speakers: Tensor
    labels: Tensor
    utterance_mask: Tensor
    causal: bool = False

    @property
    def visible(self) -> Tensor:
        """``(B, 1, L)``, or ``(B, L, L)`` where causal: whether the utterance of a row sees that of a column."""
        real = self.utterance_mask[:, None]
        if not self.causal:
            return real
        position = torch.arange(real.shape[-1], device=real.device)
        return real & (position[:, None] >= position)

    def heard(self, modality: str) -> Tensor:
        """``(B, 1 or L, 1)``: whether any utterance that is visible has a modality."""
        return (self.present[modality][:, None] & self.visible).any(dim=-1, keepdim=True)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(
            {modality: rows.to(device) for modality, rows in self.features.items()},
            {modality: rows.to(device) for modality, rows in self.present.items()},
            self.speakers.to(device),
            self.labels.to(device),
            self.utterance_mask.to(device),
            self.causal,
        )

    def without(self, modality: str, dialogues: Tensor | None = None) -> Batch:
        """The batch with a modality absent, in all dialogues or where ``dialogues`` (B,) is True."""
        lost = torch.ones_like(self.utterance_mask) if dialogues is None else dialogues[:, None]
        return replace(
            self,
            features={**self.features, modality: self.features[modality].masked_fill(lost[..., None], 0)},
            present={**self.present, modality: self.present[modality] & ~lost},
        )

    def dialogues(self, places: Tensor) -> Batch:
        """The dialogues at ``places``; where there is none the last one, without labels."""
        last = len(self.labels) - 1
        at = places.clamp(max=last)
        return Batch(
            {modality: rows[at] for modality, rows in self.features.items()},
            {modality: rows[at] for modality, rows in self.present.items()},
            self.speakers[at],
            self.labels[at].masked_fill((places > last)[:, None], IGNORE_INDEX),
            self.utterance_mask[at],
        )

    def completed(self, dims: Mapping[str, int]) -> Batch:
        """The batch with every modality of ``dims``; one it lacks is absent everywhere."""
        lacking = {modality: dim for modality, dim in dims.items() if modality not in self.features}
        if not lacking:
            return self
        shape, device = self.utterance_mask.shape, self.utterance_mask.device
        return replace(
            self,
            features={
                **self.features,
                **{m: torch.zeros(*shape, dim, device=device) for m, dim in lacking.items()},
            },
            present={**self.present, **{m: torch.zeros_like(self.utterance_mask) for m in lacking}},
        )


def collate(corpus: Corpus, dialogues: NDArray[np.int64]) -> Batch:
    """The batch of some dialogues of a corpus, padded to the longest."""
    lengths = corpus.offsets[dialogues + 1] - corpus.offsets[dialogues]
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    rows = corpus.rows(dialogues)

    def padded(values: NDArray[np.generic], fill: float) -> Tensor:
        table = np.full((*mask.shape, *values.shape[1:]), fill, dtype=values.dtype)
        table[mask] = values
        return torch.from_numpy(table)

    present = {
        modality: np.logical_not(np.isnan(values[rows]).any(axis=1)) for modality, values in corpus.features.items()
    }
    return Batch(
        features={
            modality: padded(np.where(present[modality][:, None], values[rows], np.float32(0)), 0)
            for modality, values in corpus.features.items()
        },
        present={modality: padded(known, False) for modality, known in present.items()},
        speakers=padded(corpus.speakers[rows], 0),
        labels=padded(corpus.labels[rows], IGNORE_INDEX),
        utterance_mask=torch.from_numpy(mask),
    )


def batches(corpus: Corpus, dialogues: NDArray[np.int64], size: int, device: torch.device) -> Iterator[Batch]:
    """Some dialogues of a corpus, ``size`` at a time, in the order given."""
    for start in range(0, len(dialogues), size):
        yield collate(corpus, dialogues[start : start + size]).to(device)


def alike_in_length(
    corpus: Corpus, dialogues: NDArray[np.int64], size: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Dialogues in random parts of ``size`` whose lengths are about the same, so that little is padding."""
    lengths = corpus.offsets[dialogues + 1] - corpus.offsets[dialogues]
    order = np.argsort(lengths * np.exp(generator.normal(0, 0.15, len(lengths))), kind="stable")
    parts = [dialogues[order[start : start + size]] for start in range(0, len(order), size)]
    return [parts[index] for index in generator.permutation(len(parts))]

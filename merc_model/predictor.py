"""From features to probabilities in one module: what `merc_model.export` writes and `merc_model.pretrained` shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from merc_model.config import IGNORE_INDEX
from merc_model.data.batch import Batch
from merc_model.model import MercModel


class Predictor(nn.Module):
    """Everything that `merc_model.predict` computes for the fused output, of tensors alone.

    Args:
        model: a trained model; it is put into evaluation mode.
    """

    def __init__(self, model: MercModel) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, features: dict[str, Tensor], speakers: Tensor, utterance_mask: Tensor) -> Tensor:
        """Probabilities ``(B, L, C)``, 0 at padding.

        Args:
            features: modality of the model → ``(B, L, D_m)`` float32; a row with a NaN is missing.
            speakers: ``(B, L)`` int64; all that counts is whether two utterances have the same.
            utterance_mask: ``(B, L)`` bool, True = a real utterance.
        """
        present = {modality: ~rows.isnan().any(dim=-1) & utterance_mask for modality, rows in features.items()}
        batch = Batch(
            features={m: torch.where(present[m][..., None], rows, 0) for m, rows in features.items()},
            present=present,
            speakers=speakers,
            labels=torch.full_like(speakers, IGNORE_INDEX),
            utterance_mask=utterance_mask,
        )
        probabilities = self.model(batch).logits.float().softmax(dim=-1)
        return torch.where(utterance_mask[..., None], probabilities, 0)

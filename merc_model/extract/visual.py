"""Visual features: a Hugging Face image encoder on some frames of an utterance, their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merc_model.errors import UserError


class ImageEncoder:
    """The pooled output of an image encoder (ViT, CLIP's, DINOv2, ResNet), or the mean of its last hidden states.

    Args:
        name: of a model, or a folder.
        device: where it runs.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        try:
            from transformers import AutoImageProcessor, AutoModel
        except ImportError:
            raise UserError("image encoders need transformers: pip install 'merc-kdc[extract]'") from None
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(name)
            model: Any = AutoModel.from_pretrained(name)
        except Exception as error:  # a hub, a network, a folder and a format can fail in any way
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"visual encoder {name!r} cannot be loaded: {reason}") from None
        self._model = getattr(model, "vision_model", model).to(device).eval()
        self._device = device

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """``(D,)`` of the pictures of one utterance."""
        pixels = self._processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(self._device)
        with torch.inference_mode():
            answer = self._model(pixel_values=pixels)
        pooled = getattr(answer, "pooler_output", None)
        rows = answer.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)  # [frames, D]
        row: NDArray[np.float32] = rows.float().mean(0).cpu().numpy()
        return row

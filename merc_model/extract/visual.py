"""Visual features: a Hugging Face image or video encoder on some frames of an utterance, or on the faces in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merc_model.errors import UserError
from merc_model.extract import pretrained
from merc_model.extract.media import MediaError

Picture = NDArray[np.uint8]  # [height, width, 3]
_SEEN = 240  # height at which faces are looked for
_MARGIN = 0.2  # of a face, around it


class PictureEncoder:
    """The pooled output of an image encoder (ViT, CLIP's, DINOv2, ResNet), or the mean of its last hidden states.

    Image encoders: the mean over the pictures. Video encoders (VideoMAE, TimeSformer, ViViT) see them together.

    Args:
        name: of a model, or a folder.
        device: where it runs.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self._processor, model = pretrained.load("visual encoder", name, "AutoImageProcessor", "AutoModel")
        self._model = getattr(model, "vision_model", model).to(device).eval()
        self._device = device
        self._together: int | None = getattr(self._model.config, "num_frames", None)

    def __call__(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """``(D,)`` of the pictures of one utterance."""
        if self._together is not None:
            chosen = np.linspace(0, len(pictures) - 1, self._together).round().astype(int)
            pictures = [pictures[number] for number in chosen]
        pixels = self._processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(self._device)
        if self._together is not None:
            pixels = pixels.reshape(1, self._together, *pixels.shape[-3:])
        with torch.inference_mode():
            answer = self._model(pixel_values=pixels)
        pooled = getattr(answer, "pooler_output", None)
        rows = answer.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)  # [pictures, D]
        row: NDArray[np.float32] = rows.float().mean(0).cpu().numpy()
        return row


def faces(pictures: Sequence[Picture]) -> list[Picture]:
    """The largest face of each picture that has one, by scikit-image's cascade."""
    try:
        from skimage import data, feature, transform
    except ImportError:
        raise UserError("--faces needs a detector: pip install scikit-image") from None
    cascade: Any = feature.Cascade(data.lbp_frontal_face_cascade_filename())
    found = []
    for picture in pictures:
        scale = max(picture.shape[0] / _SEEN, 1.0)
        small = transform.resize(picture, (round(picture.shape[0] / scale), round(picture.shape[1] / scale)))
        least, most = _SEEN // 8, min(small.shape[:2])
        boxes = cascade.detect_multi_scale(
            img=small, scale_factor=1.2, step_ratio=1, min_size=(least, least), max_size=(most, most)
        )
        if boxes:
            box = max(boxes, key=lambda box: box["width"])
            margin = _MARGIN * box["width"]
            top, left = (int(max(box[side] - margin, 0) * scale) for side in ("r", "c"))
            bottom, right = (int((box[s] + box[of] + margin) * scale) for s, of in (("r", "height"), ("c", "width")))
            found.append(picture[top:bottom, left:right])
    if not found:
        raise MediaError("shows no face")
    return found

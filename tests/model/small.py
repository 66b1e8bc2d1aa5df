"""A corpus and a configuration small enough to train in a second."""

from __future__ import annotations

import numpy as np

from merc_model.config import MODALITIES, Config
from merc_model.data.corpus import Corpus

LABEL_NAMES = ("calm", "glad", "cross")
DIMS = {"text": 8, "audio": 5, "visual": 6}


def small_config(**values: object) -> Config:
    small = {"hidden_dim": 16, "heads": 2, "layers": 1, "projection_dim": 8, "epochs": 2, "batch_dialogues": 4}
    return Config().changed({**small, **values})


def small_corpus(modalities: tuple[str, ...] = MODALITIES, seed: int = 0, lengths: tuple[int, ...] = ()) -> Corpus:
    """Fifteen dialogues (9 train, 3 valid, 3 test) whose features tell the label; some rows lack audio or visual."""
    generator = np.random.default_rng(seed)
    sizes = np.array(lengths or generator.integers(3, 9, 15))
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    labels = generator.integers(0, len(LABEL_NAMES), offsets[-1])
    features = {}
    for modality in modalities:
        centres = generator.normal(size=(len(LABEL_NAMES), DIMS[modality]))
        features[modality] = (centres[labels] + generator.normal(size=(len(labels), DIMS[modality]))).astype(np.float32)
        if modality != "text":
            features[modality][generator.random(len(labels)) < 0.1] = np.nan
    split = (["train"] * 3 + ["valid", "test"]) * (len(sizes) // 5) + ["test"] * (len(sizes) % 5)
    return Corpus(
        name="small",
        features=features,
        labels=labels,
        speakers=generator.integers(0, 3, offsets[-1]),
        offsets=offsets,
        dialogue_ids=np.array([f"d{index}" for index in range(len(sizes))]),
        split=np.array(split),
        label_names=np.array(LABEL_NAMES),
    )

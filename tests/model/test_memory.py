from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from merc_model.config import IGNORE_INDEX
from merc_model.data.batch import Batch, collate
from merc_model.memory import Memory
from merc_model.model import MercModel
from tests.model.small import DIMS, LABEL_NAMES, small_config, small_corpus


def batch_of(text: list[list[float]], labels: list[int], audio: list[list[float]] | None = None) -> Batch:
    """One dialogue; an audio row of zeros is missing."""
    features = {"text": torch.tensor([text])}
    present = {"text": torch.ones(1, len(text), dtype=torch.bool)}
    if audio is not None:
        features["audio"] = torch.tensor([audio])
        present["audio"] = features["audio"].any(dim=-1)
    zeros = torch.zeros(1, len(text), dtype=torch.int64)
    return Batch(features, present, zeros, torch.tensor([labels]), torch.ones_like(zeros, dtype=torch.bool))


def test_evidence_worked_out_by_hand() -> None:
    memory = Memory({"text": 2}, 2, small_config(memory_temperature=0.5))
    known = batch_of([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], [0, 1, 1])
    memory.fill(known.features, known)
    asking = batch_of([[5.0, 0.0]], [IGNORE_INDEX])
    shares = [math.exp(cosine / 0.5) for cosine in (1.0, 0.0, -1.0)]
    collected = [shares[0] / sum(shares), sum(shares[1:]) / sum(shares)]
    expected = [math.log(collected[0] / (1 / 3) + 0.1), math.log(collected[1] / (2 / 3) + 0.1)]
    torch.testing.assert_close(memory(asking.features, asking)[0, 0], torch.tensor(expected))


def test_text_leads_the_memory_and_audio_says_a_little_where_there_is_no_text() -> None:
    memory = Memory({"text": 2, "audio": 2}, 2, small_config(memory_temperature=0.1))
    known = batch_of([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[0.0, 1.0], [1.0, 0.0]])
    memory.fill(known.features, known)
    asking = batch_of([[1.0, 0.0]], [IGNORE_INDEX], [[1.0, 0.0]])  # text like the first, audio like the second
    assert memory(asking.features, asking)[0, 0].argmax() == 0
    deaf = asking.without("text")
    heard, unheard = memory(asking.features, asking)[0, 0], memory(deaf.features, deaf)[0, 0]
    assert unheard.argmax() == 1
    assert (unheard[1] - unheard[0]) < 0.5 * (heard[0] - heard[1])


def test_a_speaker_s_other_utterances_add_their_mean_evidence_near_ones_first() -> None:
    alone, memory = (Memory({"text": 2}, 2, small_config(memory_reach=reach)) for reach in (0.0, 2.0))
    known = batch_of([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], [0, 1, 1])
    for each in (alone, memory):
        each.fill(known.features, known)
    asking = batch_of([[5.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.3]], [IGNORE_INDEX] * 4)
    asking = replace(asking, speakers=torch.tensor([[0, 1, 0, 0]]))
    own = alone(asking.features, asking)[0]
    near, far = math.exp(-2 / 2), math.exp(-3 / 2)
    around = memory(asking.features, asking)[0]
    torch.testing.assert_close(around[0], own[0] + (near * own[2] + far * own[3]) / (near + far))
    torch.testing.assert_close(around[1], own[1])  # nothing else was said by this speaker


def test_what_stands_in_the_padding_adds_no_evidence() -> None:
    memory = Memory({"text": 2}, 2, small_config(memory_reach=2.0))
    known = batch_of([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], [0, 1, 1])
    memory.fill(known.features, known)
    short = batch_of([[5.0, 0.0], [1.0, 1.0]], [IGNORE_INDEX] * 2)
    longer = batch_of([[5.0, 0.0], [1.0, 1.0], [9.0, 9.0]], [IGNORE_INDEX] * 3)
    longer = replace(longer, utterance_mask=torch.tensor([[True, True, False]]))
    torch.testing.assert_close(memory(longer.features, longer)[:, :2], memory(short.features, short))


def test_an_utterance_of_which_nothing_is_known_gets_no_evidence() -> None:
    memory = Memory({"text": 2}, 2, small_config(memory_reach=0.0))
    known = batch_of([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0, 1, 1])
    memory.fill(known.features, known)
    asking = known.without("text")
    evidence = memory(asking.features, asking)
    torch.testing.assert_close(evidence, torch.full_like(evidence, math.log(1.1)))


def test_nothing_is_said_before_anything_is_remembered_nor_of_classes_that_never_came() -> None:
    memory = Memory({"text": 2}, 3, small_config(memory_reach=0.0))
    known = batch_of([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert not memory(known.features, known).any()
    memory.fill(known.features, known)
    torch.testing.assert_close(memory(known.features, known)[..., 2], torch.full((1, 2), math.log(1.1)))


@pytest.mark.parametrize("labels", [[0, IGNORE_INDEX], [IGNORE_INDEX, IGNORE_INDEX]])
def test_labelled_utterances_alone_are_remembered(labels: list[int]) -> None:
    memory = Memory({"text": 2}, 2, small_config())
    known = batch_of([[1.0, 0.0], [0.0, 1.0]], labels)
    memory.fill(known.features, known)
    assert len(memory.labels) == len(memory.get_buffer("text_keys")) == labels.count(0)


def test_a_model_is_loaded_with_what_it_remembers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    corpus = small_corpus()
    model, empty = (MercModel(DIMS, LABEL_NAMES, small_config()).eval() for _ in range(2))
    model.remember(collate(corpus, np.arange(9)))
    empty.load_state_dict(model.state_dict())
    batch = collate(corpus, np.arange(9, 15))
    torch.testing.assert_close(empty(batch).logits, model(batch).logits, atol=0, rtol=0)


def test_the_memory_speaks_in_evaluation_mode_alone() -> None:
    torch.manual_seed(0)
    corpus = small_corpus()
    model = MercModel(DIMS, LABEL_NAMES, small_config(dropout=0.0, feature_dropout=0.0))
    model.remember(collate(corpus, np.arange(9)))
    batch = collate(corpus, np.arange(9, 15))
    learning = model.train()(batch).logits
    torch.testing.assert_close(replace(model.eval()(batch)).embeddings, model.train()(batch).embeddings)
    assert not torch.allclose(learning, model.eval()(batch).logits)

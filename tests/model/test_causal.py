"""A causal model sees nothing of what comes after an utterance, in any of its parts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merc_model.ablation.logistic import LogisticBaseline
from merc_model.data.batch import Batch, collate
from merc_model.model import MercModel
from merc_model.surroundings import mean_around
from tests.model.small import DIMS, LABEL_NAMES, small_config, small_corpus

PARTS: dict[str, dict[str, Any]] = {
    "network": {"memory": False, "linear": False},
    "deep": {"memory": False, "linear": False, "layers": 2, "fusion_layers": 2},
    "no speaker's own statistics": {"memory": False, "linear": False, "speaker_relative": False},
    "mean fusion": {"memory": False, "linear": False, "text_leading": False},
    "early fusion": {"memory": False, "linear": False, "fusion": "early"},
    "memory": {"linear": False},
    "linear model": {"memory": False},
    "all": {"prior_adjustment": 0.5},
}
LENGTH, CHANGED = 9, 5


def made(causal: bool, **part: Any) -> MercModel:
    torch.manual_seed(0)
    model = MercModel(DIMS, LABEL_NAMES, small_config(**part, causal=causal))
    for parameter in model.parameters():  # no part may hide behind a zero initialisation
        torch.nn.init.normal_(parameter, std=0.3)
    training = collate(small_corpus(seed=1), np.arange(15))
    model.remember(training)
    model.fit_linear([training])
    return model.eval()


def said(model: MercModel, batch: Batch) -> dict[str, Tensor]:
    output = model(batch)
    return {
        "fused": output.logits.softmax(dim=-1),
        "embeddings": output.embeddings,
        **{modality: logits.softmax(dim=-1) for modality, logits in output.modality_logits.items()},
        **{f"{modality} hidden": states for modality, states in output.hidden.items()},
    }


def dialogue() -> Batch:
    return collate(small_corpus(lengths=(LENGTH, LENGTH, 4, 1, 6)), np.arange(2))


def otherwise(batch: Batch, what: str) -> Batch:
    """The batch with another utterance in place of number ``CHANGED``."""
    later = torch.arange(LENGTH) == CHANGED
    if what == "features":
        return dataclasses.replace(batch, features={m: rows + 3 * later[:, None] for m, rows in batch.features.items()})
    if what == "speaker":
        return dataclasses.replace(batch, speakers=torch.where(later, 7, batch.speakers))
    if what == "end":
        return dataclasses.replace(
            batch,
            utterance_mask=batch.utterance_mask & (torch.arange(LENGTH) < CHANGED),
            present={m: known & (torch.arange(LENGTH) < CHANGED) for m, known in batch.present.items()},
        )
    return dataclasses.replace(batch, present={m: known & ~later for m, known in batch.present.items()})


@pytest.mark.parametrize("what", ["features", "speaker", "presence", "end"])
@pytest.mark.parametrize("part", PARTS)
def test_a_later_utterance_changes_no_earlier_answer(part: str, what: str) -> None:
    model, batch = made(True, **PARTS[part]), dialogue()
    before, after = said(model, batch), said(model, otherwise(batch, what))
    for name, values in before.items():
        torch.testing.assert_close(after[name][:, :CHANGED], values[:, :CHANGED], atol=1e-6, rtol=0, msg=name)
    if what != "end":
        assert (after["fused"] - before["fused"])[:, CHANGED:].abs().max() > 1e-4


@pytest.mark.parametrize("part", PARTS)
def test_in_the_full_form_it_does(part: str) -> None:
    model, batch = made(False, **PARTS[part]), dialogue()
    difference = said(model, otherwise(batch, "features"))["fused"] - said(model, batch)["fused"]
    assert difference[:, :CHANGED].abs().max() > 1e-4


@pytest.mark.parametrize("part", PARTS)
def test_a_dialogue_so_far_is_answered_as_within_the_whole(part: str) -> None:
    model, batch = made(True, **PARTS[part]), dialogue()
    whole = said(model, batch)
    for length in range(1, LENGTH + 1):
        so_far = Batch(
            {m: rows[:, :length] for m, rows in batch.features.items()},
            {m: known[:, :length] for m, known in batch.present.items()},
            *(table[:, :length] for table in (batch.speakers, batch.labels, batch.utterance_mask)),
        )
        for name, values in said(model, so_far).items():
            torch.testing.assert_close(values, whole[name][:, :length], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("part", PARTS)
def test_text_that_comes_later_does_not_lead_before(part: str) -> None:
    model, batch = made(True, **PARTS[part]), dialogue()
    first = torch.arange(LENGTH) < CHANGED
    late = dataclasses.replace(batch, present={**batch.present, "text": batch.present["text"] & ~first})
    never = said(model, batch.without("text"))
    for name, values in said(model, late).items():
        torch.testing.assert_close(values[:, :CHANGED], never[name][:, :CHANGED], atol=1e-6, rtol=0, msg=name)


def test_the_linear_model_learns_from_what_came_before_alone() -> None:
    """The last utterances of a dialogue are in nobody's past, so without labels they change nothing."""
    training = collate(small_corpus(seed=1), np.arange(15))
    lasts = training.utterance_mask.sum(dim=1) - 1
    last = torch.arange(training.labels.shape[1]) == lasts[:, None]
    unlabelled = dataclasses.replace(training, labels=torch.where(last, -100, training.labels))
    changed = {modality: rows + 5 * last[..., None] for modality, rows in unlabelled.features.items()}
    models = []
    for causal in (True, False):
        for batch in (unlabelled, dataclasses.replace(unlabelled, features=changed)):
            model = MercModel(DIMS, LABEL_NAMES, small_config(causal=causal, linear_penalty=1.0))
            model.fit_linear([batch])
            assert model.linear is not None
            models.append(model.linear.weight)
    torch.testing.assert_close(models[0], models[1], atol=1e-5, rtol=0)
    assert (models[2] - models[3]).abs().max() > 1e-3


def test_the_mean_of_what_came_before_worked_out_by_hand() -> None:
    batch = dataclasses.replace(
        dialogue(),
        speakers=torch.tensor([[0, 0, 1, 0]]),
        utterance_mask=torch.ones(1, 4, dtype=torch.bool),
        causal=True,
    )
    values = torch.tensor([[[1.0], [2.0], [5.0], [3.0]]])
    near, far = np.exp(-2 / 2.0), np.exp(-3 / 2.0)
    expected = [0.0, 1.0, 0.0, (2 * near + 1 * far) / (near + far)]
    assert mean_around(values, batch, 2.0, same_speaker=True).flatten().tolist() == pytest.approx(expected)
    near, far = np.exp(-1 / 2.0), np.exp(-2 / 2.0)
    expected = [0.0, 0.0, (2 * near + 1 * far) / (near + far), 5.0]
    assert mean_around(values, batch, 2.0, same_speaker=False).flatten().tolist() == pytest.approx(expected)


def test_the_control_of_the_ablation_is_causal_too() -> None:
    corpus = small_corpus(lengths=(9,) * 15)
    baseline = LogisticBaseline(corpus, causal=True)
    baseline.window = 2
    changed = {modality: rows.copy() for modality, rows in corpus.features.items()}
    for rows in changed.values():
        rows[CHANGED] += 3
    before, after = (baseline._inputs(c, 2) for c in (corpus, dataclasses.replace(corpus, features=changed)))
    np.testing.assert_allclose(after[:CHANGED], before[:CHANGED], atol=1e-5)
    assert before.shape[1] == 5 * sum({"text": 8, "audio": 10, "visual": 12}.values())

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from merc_model.data.batch import Batch, collate
from merc_model.encoders import Standardize, speaker_relative
from merc_model.errors import UserError
from merc_model.model import MercModel, Output
from tests.model.small import DIMS, LABEL_NAMES, small_config, small_corpus

TOLERANCE = 1e-5


@pytest.fixture(params=[{}, {"text_leading": False}, {"fusion": "early"}], ids=["text-led", "mean", "early"])
def model(request: pytest.FixtureRequest) -> MercModel:
    torch.manual_seed(0)
    model = MercModel(DIMS, LABEL_NAMES, small_config(**request.param, layers=2))
    for parameter in model.parameters():  # no part may hide behind a zero initialisation
        torch.nn.init.normal_(parameter, std=0.3)
    model.remember(collate(small_corpus(seed=1), np.arange(15)))
    return model.eval()


def heads(output: Output) -> dict[str, torch.Tensor]:
    return {"fused": output.logits, "embeddings": output.embeddings, **output.modality_logits}


def test_predictions_do_not_depend_on_batch_mates_or_padding(model: MercModel) -> None:
    corpus = small_corpus(lengths=(1, 7, 30, 3, 12))
    together = heads(model(collate(corpus, np.arange(5))))
    for dialogue in range(5):
        alone = heads(model(collate(corpus, np.array([dialogue]))))
        length = corpus.offsets[dialogue + 1] - corpus.offsets[dialogue]
        for head, values in alone.items():
            difference = (together[head][dialogue, :length] - values[0]).abs().max()
            assert difference < TOLERANCE, head


def test_predictions_do_not_depend_on_the_order_of_dialogues(model: MercModel) -> None:
    corpus = small_corpus()
    order = np.array([4, 0, 3, 1, 2])
    straight, shuffled = heads(model(collate(corpus, np.arange(5)))), heads(model(collate(corpus, order)))
    mask = collate(corpus, order).utterance_mask
    for head, values in straight.items():
        torch.testing.assert_close(values[order][mask], shuffled[head][mask], atol=TOLERANCE, rtol=0)


def test_what_stands_in_padding_and_in_missing_rows_does_not_matter(model: MercModel) -> None:
    batch = collate(small_corpus(), np.arange(5))
    soiled = {
        modality: torch.where(batch.present[modality][..., None], rows, 1e4)
        for modality, rows in batch.features.items()
    }
    clean, dirty = heads(model(batch)), heads(model(dataclasses.replace(batch, features=soiled)))
    for head, values in clean.items():
        torch.testing.assert_close(values[batch.utterance_mask], dirty[head][batch.utterance_mask], atol=0, rtol=0)


@pytest.mark.parametrize("modality", ["text", "audio", "visual"])
def test_every_modality_reaches_the_fused_logits_and_a_dropped_one_does_not(model: MercModel, modality: str) -> None:
    batch = collate(small_corpus(), np.arange(5))
    changed = {**batch.features, modality: batch.features[modality] + 1}
    reached = model(dataclasses.replace(batch, features=changed)).logits - model(batch).logits
    assert reached[batch.utterance_mask].abs().max() > 1e-3
    without = dataclasses.replace(batch, features=changed).without(modality)
    torch.testing.assert_close(model(without).logits, model(batch.without(modality)).logits, atol=0, rtol=0)


def test_a_modality_that_a_batch_lacks_is_missing_in_every_utterance(model: MercModel) -> None:
    batch = collate(small_corpus(("text", "audio")), np.arange(5))
    output = model(batch)
    zeros = torch.zeros(*batch.utterance_mask.shape, DIMS["visual"])
    absent = dataclasses.replace(
        batch,
        features={**batch.features, "visual": zeros},
        present={**batch.present, "visual": torch.zeros_like(batch.utterance_mask)},
    )
    torch.testing.assert_close(output.logits, model(absent).logits, atol=0, rtol=0)


def test_speakers_matter_and_may_be_any_number(model: MercModel) -> None:
    batch = collate(small_corpus(), np.arange(5))
    crowd = dataclasses.replace(batch, speakers=torch.arange(batch.speakers.numel()).view_as(batch.speakers) * 7)
    output = model(crowd).logits
    assert output.isfinite().all()
    assert (output - model(batch).logits)[batch.utterance_mask].abs().max() > 1e-3


@pytest.mark.parametrize("length", [1000, pytest.param(2000, marks=pytest.mark.full)])
def test_a_long_dialogue(model: MercModel, length: int) -> None:
    corpus = small_corpus(lengths=(length, 1))
    with torch.inference_mode():
        output = model(collate(corpus, np.arange(2)))
    assert output.logits.shape == (2, length, len(LABEL_NAMES))
    assert all(values.isfinite().all() for values in heads(output).values())


def test_text_is_needed() -> None:
    with pytest.raises(UserError, match=r"no text.*it has audio"):
        MercModel({"audio": 5}, LABEL_NAMES, small_config())


def test_dropping_a_modality_for_some_dialogues() -> None:
    batch = collate(small_corpus(), np.arange(5))
    lost = torch.tensor([True, False, False, True, False])
    thinned: Batch = batch.without("audio", lost)
    assert not thinned.present["audio"][lost].any()
    assert torch.equal(thinned.present["audio"][~lost], batch.present["audio"][~lost])
    assert torch.equal(thinned.present["visual"], batch.present["visual"])


def test_standardize_takes_the_statistics_of_complete_rows() -> None:
    rows = torch.tensor([[1.0, 5.0], [3.0, 5.0], [float("nan"), 100.0]])
    standardize = Standardize(2)
    standardize.fit(rows)
    assert standardize.mean.tolist() == [2.0, 5.0]
    assert standardize.sd.tolist() == [1.0, 1.0]  # the second feature is constant: divided by 1
    assert standardize(rows[:2]).tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_a_burst_of_noise_is_clipped() -> None:
    standardize = Standardize(1)
    standardize.fit(torch.tensor([[0.0], [2.0]]))
    assert standardize(torch.tensor([[1e6], [-1e6]])).tolist() == [[8.0], [-8.0]]


def test_features_relative_to_their_speaker_worked_out_by_hand() -> None:
    features = torch.tensor([[[1.0], [3.0], [5.0], [1e4], [7.0]]])
    speakers = torch.tensor([[0, 0, 1, 1, 1]])
    present = torch.tensor([[True, True, True, False, True]])
    # speaker 0: mean 2, squared deviations 2; speaker 1 has 5 and 7, for one row is missing
    first, second = ((2 + 3) / (2 + 3)) ** 0.5, ((2 + 3) / (2 + 3)) ** 0.5
    expected = [(1 - 2 * 0.5) / first, (3 - 2 * 0.5) / first, (5 - 6 * 0.5) / second, 0.0, (7 - 6 * 0.5) / second]
    relative = speaker_relative(features, present, speakers, torch.ones(1, 5, 5, dtype=torch.bool))
    torch.testing.assert_close(relative.flatten(), torch.tensor(expected))


def test_without_students_text_is_fused_with_nothing() -> None:
    torch.manual_seed(0)
    model = MercModel(DIMS, LABEL_NAMES, small_config()).eval()
    batch = collate(small_corpus(("text",)), np.arange(5)).completed(DIMS)
    hidden, _ = model.encode("text", batch)
    led = model.fusion({"text": hidden, "audio": hidden + 1, "visual": hidden - 1}, batch)
    torch.testing.assert_close(led, model.fusion.shared(hidden, batch), atol=0, rtol=0)


def test_where_there_is_no_text_at_all_the_students_answer() -> None:
    torch.manual_seed(0)
    model = MercModel(DIMS, LABEL_NAMES, small_config()).eval()
    whole = collate(small_corpus(), np.arange(5))
    batch = whole.without("text", torch.tensor([True, False, True, False, False]))
    batch = batch.without("visual", torch.tensor([True, True, False, False, False]))
    output = model(batch)
    heads = {modality: logits.log_softmax(-1) for modality, logits in output.modality_logits.items()}
    torch.testing.assert_close(output.logits[0], heads["audio"][0])
    torch.testing.assert_close(output.logits[2], (heads["audio"][2] + heads["visual"][2]) / 2)
    torch.testing.assert_close(output.logits[3:], model(whole).logits[3:])

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from merc_model.errors import UserError
from merc_model.evaluation import metrics, predict
from merc_model.model import MercModel
from tests.model.small import DIMS, LABEL_NAMES, small_config, small_corpus


@pytest.fixture
def model() -> MercModel:
    torch.manual_seed(0)
    return MercModel(DIMS, LABEL_NAMES, small_config())


def test_metrics_worked_out_by_hand() -> None:
    values = metrics(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 2]), ["a", "b", "c", "never"])
    # a: precision 2/3, recall 2/3; b: 1/2, 1/2; c: 1, 1
    assert values["f1"] == pytest.approx({"a": 2 / 3, "b": 1 / 2, "c": 1.0, "never": 0.0})
    assert values["weighted_f1"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1 * 1) / 6)
    assert values["macro_f1"] == values["uar"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["confusion"] == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert values["utterances"] == 6


def test_one_emotion_alone_has_metrics_without_warnings() -> None:
    values = metrics(np.zeros(3, int), np.zeros(3, int), ["glad"])
    assert values["weighted_f1"] == values["macro_f1"] == values["accuracy"] == values["uar"] == 1
    assert values["confusion"] == [[3]]
    assert metrics(np.array([1, 1]), np.array([1, 0]), ["sad", "glad"])["confusion"] == [[0, 0], [1, 1]]


def test_predictions_stand_in_the_order_asked_for(model: MercModel) -> None:
    corpus = small_corpus(lengths=(3, 5, 2) * 7)  # more dialogues than a batch
    order = np.arange(21)[::-1]
    straight, backward = predict(model, corpus, np.arange(21)), predict(model, corpus, order)
    rows = corpus.rows(order)
    np.testing.assert_array_equal(backward.labels, corpus.labels[rows])
    for head, values in straight.probabilities.items():
        np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(backward.probabilities[head], values[rows], atol=1e-5)


def test_unlabelled_rows_do_not_count(model: MercModel) -> None:
    corpus = small_corpus()
    labels = corpus.labels.copy()
    labels[:10] = -100
    predictions = predict(model, replace(corpus, labels=labels), np.arange(15))
    assert len(predictions.labels) == len(labels)
    assert predictions.metrics(LABEL_NAMES)["utterances"] == len(labels) - 10


def test_a_dropped_modality_is_as_one_that_is_not_there(model: MercModel) -> None:
    corpus = small_corpus()
    text = replace(corpus, features={"text": corpus.features["text"]})
    dropped = predict(model, corpus, np.arange(5), drop=["audio", "visual"]).probabilities["fused"]
    np.testing.assert_array_equal(dropped, predict(model, text, np.arange(5)).probabilities["fused"])
    assert not np.array_equal(dropped, predict(model, corpus, np.arange(5)).probabilities["fused"])


def test_no_answer_that_is_not_finite_is_used(model: MercModel) -> None:
    with torch.no_grad():
        model.heads["audio"].bias[1] = torch.nan
    with pytest.raises(UserError, match="the model's answer is not finite"):
        predict(model, small_corpus(), np.arange(2))


@pytest.mark.parametrize("value", [3e30, -2e7, np.float64(-1.7e300)])
def test_a_value_far_from_the_training_rows_is_named(model: MercModel, value: float) -> None:
    corpus = small_corpus()
    audio = corpus.features["audio"].astype(np.float64)
    audio[corpus.offsets[4] + 1, 2] = value
    audio[corpus.offsets[4] + 1, 3] = 1e5  # far, but not absurd
    place = "audio.* dialogue 'd4', utterance 2.*column 2"
    with pytest.raises(UserError, match=place):
        predict(model, replace(corpus, features={**corpus.features, "audio": audio}), np.arange(5))


def test_a_value_far_from_the_training_rows_does_not_matter_where_it_is_not_read(model: MercModel) -> None:
    corpus = small_corpus()
    audio = corpus.features["audio"].copy()
    audio[corpus.offsets[4], 2] = 3e30
    odd = replace(corpus, features={**corpus.features, "audio": audio})
    assert np.isfinite(predict(model, odd, np.arange(4)).embeddings).all()
    assert np.isfinite(predict(model, odd, np.arange(5), drop=["audio"]).embeddings).all()


def test_what_the_model_never_saw_is_said(model: MercModel) -> None:
    corpus = small_corpus()
    wide = replace(corpus, features={**corpus.features, "audio": np.ones((len(corpus.labels), 9), np.float32)})
    with pytest.raises(UserError, match="audio: expected 5 features a row, got 9"):
        predict(model, wide, np.arange(2))
    deaf = MercModel({"text": 8}, LABEL_NAMES, small_config())
    with pytest.raises(UserError, match=r"audio was never seen in training \(the model knows text\)"):
        predict(deaf, corpus, np.arange(2))
    with pytest.raises(UserError, match="label_names: expected calm, glad, cross, got calm, cross, glad"):
        predict(model, replace(corpus, label_names=np.array(["calm", "cross", "glad"])), np.arange(2))
    with pytest.raises(UserError, match="cannot drop 'visual': the corpus has text"):
        predict(model, replace(corpus, features={"text": corpus.features["text"]}), np.arange(2), drop=["visual"])
    with pytest.raises(UserError, match="cannot drop every modality"):
        predict(model, corpus, np.arange(2), drop=["text", "audio", "visual"])

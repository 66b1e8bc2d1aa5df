from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from merc_model.config import IGNORE_INDEX, Config
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.training import Training
from tests.model.small import small_config, small_corpus

CPU = torch.device("cpu")
STAGES = ["teacher", "student_audio", "student_visual", "fusion"]


def trained(config: Config, corpus: Corpus | None = None, seed: int = 0) -> Training:
    training = Training(corpus or small_corpus(), config, seed, CPU)
    for _ in training.epochs():
        pass
    return training


@functools.cache
def once(**values: Any) -> Training:
    """A training that several tests look at."""
    return trained(small_config(**values))


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_seeds_give_the_same_weights_bit_for_bit() -> None:
    first = weights(once())
    assert same(first, weights(trained(small_config())))
    assert not same(first, weights(trained(small_config(), seed=1)))


@pytest.mark.parametrize(
    "switch",
    [
        {"kd": False},
        {"feature_kd": False},
        {"fcl": False},
        {"elcl": False},
        {"prototype_anchors": True},
        {"fcl_gamma": 0.0},
        {"fcl_focal": "probability"},
        {"fcl_class_balance": 0.0},
        {"modality_ce_weight": 0.0},
        {"modality_dropout": 0.0},
        {"class_balance": 1.0},
        {"label_smoothing": 0.0},
        {"average_decay": 0.0},
    ],
    ids=str,
)
def test_every_switch_changes_the_weights(switch: dict[str, Any]) -> None:
    assert not same(weights(once(epochs=1)), weights(trained(small_config(epochs=1, **switch))))


def test_without_a_leader_the_network_is_another() -> None:
    led, even = weights(once(epochs=1)), weights(trained(small_config(epochs=1, text_leading=False)))
    assert led.keys() != even.keys()
    assert not torch.equal(led["classifier.weight"], even["classifier.weight"])


def test_the_early_control_has_one_stage_and_no_other_heads() -> None:
    training = trained(small_config(fusion="early", fcl=False))
    assert {row["stage"] for row in training.history} == {"fusion"}
    assert "ce_loss" in training.history[0]
    assert not {"modality_ce_loss", "fcl_loss"} & training.history[0].keys()
    assert not [name for name in weights(training) if name.startswith(("encoders.", "heads."))]
    rows = training.corpus.features["audio"][training.corpus.rows(training.dialogues["train"])]
    np.testing.assert_allclose(training.model.standardize("audio").mean, np.nanmean(rows, axis=0), rtol=1e-5)
    assert training.metrics("test")["utterances"] > 0


def test_distillation_touches_the_students_stage_alone() -> None:
    with_kd, without = (
        Training(small_corpus(), small_config(), 0, CPU),
        Training(small_corpus(), small_config(kd=False, feature_kd=False), 0, CPU),
    )
    terms = []
    for training in (with_kd, without):
        rows = {row["stage"]: row for row in training.epochs()}
        terms.append({stage: {name for name in row if name.endswith("_loss")} for stage, row in rows.items()})
    for stage in STAGES:
        expected = {"kd_loss", "feature_kd_loss"} if stage.startswith("student") else set()
        assert terms[0][stage] - terms[1][stage] == expected


def test_the_teacher_stays_frozen_while_the_students_learn() -> None:
    training = Training(small_corpus(), small_config(), 0, CPU)
    texts = {}
    for row in training.epochs():
        text = [*training.model.encoders["text"].parameters(), *training.model.heads["text"].parameters()]
        texts.setdefault(row["stage"], []).append(torch.cat([p.detach().flatten().clone() for p in text]))
    assert torch.equal(texts["student_audio"][0], texts["student_visual"][-1])
    assert not torch.equal(texts["teacher"][0], texts["teacher"][-1])
    assert not torch.equal(texts["student_visual"][-1], texts["fusion"][-1])


LONG = {"epochs": 4, "patience": 4}  # so that the chosen epoch is not always the first
LONGER = small_config(**LONG)


@pytest.mark.parametrize("epochs_done", [1, 6, 11, 14])
def test_a_restored_training_ends_where_an_uninterrupted_one_does(epochs_done: int) -> None:
    whole = once(**LONG)
    interrupted = Training(small_corpus(), LONGER, 0, CPU)
    for done, _ in enumerate(interrupted.epochs(), start=1):
        if done == epochs_done:
            state = {name: _copied(value) for name, value in interrupted.state().items()}
            break
    resumed = Training(small_corpus(), LONGER, 0, CPU)
    resumed.restore(state)
    torch.rand(7)  # the random state of a new process is another
    for _ in resumed.epochs():
        pass
    assert same(weights(whole), weights(resumed))
    assert [row["stage"] for row in resumed.history] == [stage for stage in STAGES for _ in range(4)]
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    assert resumed.stage_metrics == whole.stage_metrics


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def test_training_learns() -> None:
    training = trained(small_config(epochs=30, patience=30, dropout=0.0, learning_rate=3e-3))
    losses = [row["loss"] for row in training.history if row["stage"] == "fusion"]
    assert losses[-1] < 0.7 * losses[0]
    assert training.metrics("train")["weighted_f1"] > 0.9


def test_early_stopping_keeps_the_best_epoch() -> None:
    training = trained(small_config(epochs=40, patience=3))
    for stage in STAGES:
        scores = [row["valid_weighted_f1"] for row in training.history if row["stage"] == stage]
        best = int(np.argmax(scores))
        assert len(scores) == min(40, best + 1 + 3)
    assert training.metrics("valid")["weighted_f1"] == max(scores)


def test_a_text_only_corpus_has_no_students() -> None:
    training = trained(small_config(), small_corpus(("text",)))
    assert list(training.stage_metrics) == ["teacher", "fusion"]
    assert training.seconds["students"] == 0


def test_statistics_come_from_the_training_rows() -> None:
    corpus = small_corpus()
    training = Training(corpus, small_config(), 0, CPU)
    rows = corpus.features["audio"][corpus.rows(corpus.dialogues("train"))]
    np.testing.assert_allclose(training.model.encoder("audio").standardize.mean, np.nanmean(rows, axis=0), rtol=1e-5)
    np.testing.assert_allclose(training.model.encoder("audio").standardize.sd, np.nanstd(rows, axis=0), rtol=1e-5)


def test_unlabelled_utterances_and_dialogues_do_no_harm() -> None:
    corpus = small_corpus()
    labels = corpus.labels.copy()
    labels[: corpus.offsets[2]] = IGNORE_INDEX
    labels[::3] = IGNORE_INDEX
    training = trained(small_config(batch_dialogues=1), replace(corpus, labels=labels))
    assert all(np.isfinite(row["loss"]) for row in training.history)


def test_a_class_that_training_never_saw() -> None:
    corpus = small_corpus()
    training = trained(small_config(), replace(corpus, label_names=np.array(["calm", "glad", "cross", "unseen"])))
    assert training.metrics("test")["f1"]["unseen"] == 0


@pytest.mark.parametrize("split", ["train", "valid"])
def test_nothing_to_learn_from_is_said(split: str) -> None:
    corpus = small_corpus()
    labels = corpus.labels.copy()
    labels[corpus.rows(corpus.dialogues(split))] = IGNORE_INDEX
    with pytest.raises(UserError, match=f"no labelled utterance in split '{split}'"):
        Training(replace(corpus, labels=labels), small_config(), 0, CPU)


def test_a_modality_that_training_never_has_is_said() -> None:
    corpus = small_corpus()
    audio = corpus.features["audio"].copy()
    audio[corpus.rows(corpus.dialogues("train"))] = np.nan
    with pytest.raises(UserError, match="audio is missing in every training row"):
        Training(replace(corpus, features={**corpus.features, "audio": audio}), small_config(), 0, CPU)


def test_a_test_set_without_labels_is_left_out_of_the_metrics() -> None:
    corpus = small_corpus()
    labels = corpus.labels.copy()
    labels[corpus.rows(corpus.dialogues("test"))] = IGNORE_INDEX
    assert trained(small_config(epochs=1), replace(corpus, labels=labels)).stage_metrics == {}


def test_a_loss_that_is_not_finite_stops_the_run_with_advice() -> None:
    with pytest.raises(UserError, match="lower learning_rate"):
        trained(small_config(learning_rate=1e30))


def test_legacy_selection_on_the_test_set_is_named_in_the_history() -> None:
    training = trained(small_config(select_on="test"))
    assert all("test_weighted_f1" in row and "valid_weighted_f1" not in row for row in training.history)

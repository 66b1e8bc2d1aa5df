from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from merc_model import training as trainer
from merc_model.config import IGNORE_INDEX, MODALITIES, Config
from merc_model.data.batch import alike_in_length, collate
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.training import Training
from tests.model.small import small_config, small_corpus

CPU = torch.device("cpu")


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
        {"modality_dropout": 0.5},
        {"class_balance": 1.0},
        {"speaker_relative": False},
        {"feature_dropout": 0.0},
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


def test_the_early_control_has_no_other_heads() -> None:
    training = trained(small_config(fusion="early", fcl=False))
    assert "ce_loss" in training.history[0]
    assert not {"modality_ce_loss", "kd_loss", "feature_kd_loss", "fcl_loss"} & training.history[0].keys()
    assert not [name for name in weights(training) if name.startswith(("encoders.", "heads."))]
    assert list(training.metrics("test")) == ["fused"]


def test_the_memory_changes_what_is_said_and_not_what_is_learnt() -> None:
    with_memory, without = trained(small_config()), trained(small_config(memory=False))
    learnt = weights(with_memory)
    assert same(weights(without), {name: value for name, value in learnt.items() if not name.startswith("memory")})
    assert with_memory.metrics("train") != without.metrics("train")


LONGER = small_config(epochs=4)


@pytest.mark.parametrize("epochs_done", [1, 3, 4])
@pytest.mark.parametrize("select_on", ["last", "valid"])
def test_a_restored_training_ends_where_an_uninterrupted_one_does(epochs_done: int, select_on: str) -> None:
    config = LONGER.changed({"select_on": select_on})
    whole = trained(config)
    interrupted = Training(small_corpus(), config, 0, CPU)
    for done, _ in enumerate(interrupted.epochs(), start=1):
        if done == epochs_done:
            state = {name: _copied(value) for name, value in interrupted.state().items()}
            break
    resumed = Training(small_corpus(), config, 0, CPU)
    resumed.restore(state)
    torch.rand(7)  # the random state of a new process is another
    for _ in resumed.epochs():
        pass
    assert same(weights(whole), weights(resumed))
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4]
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    assert resumed.metrics("test") == whole.metrics("test")


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 2), (3600.0, 0)])
def test_where_there_is_no_terminal_a_line_says_how_far_it_is(
    seconds: float, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "_SECONDS_BETWEEN_LINES", seconds)
    trained(small_config())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert all(line.startswith("training: epoch ") and "loss " in line for line in said)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_dim": 10**8},
        {"hidden_dim": 10**9},
        {"layers": 100, "hidden_dim": 32768},
        pytest.param({"layers": 1000, "hidden_dim": 8192}, marks=pytest.mark.full),
    ],
)
def test_a_model_too_large_for_the_memory_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"too large for any memory|needs .* GiB.*hidden_dim={sizes['hidden_dim']}"):
        Training(small_corpus(), small_config(**sizes), 0, CPU)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("best"),
        lambda state: state.update(epoch=99),
        lambda state: state.update(epoch="x"),
        lambda state: state["best"].update(weights={"a": torch.zeros(1)}),
        lambda state: state["model"].popitem(),
        lambda state: state.update(optimizer={}),
        lambda state: state.update(average=3),
    ],
)
def test_a_state_that_does_not_fit_is_noticed(damage: Callable[[dict[str, Any]], object]) -> None:
    half = Training(small_corpus(), small_config(epochs=1), 0, CPU)
    next(half.epochs())
    state = half.state()
    damage(state)
    with pytest.raises((LookupError, TypeError, ValueError, RuntimeError, AttributeError)):
        Training(small_corpus(), small_config(epochs=1), 0, CPU).restore(state)


def test_training_learns() -> None:
    still = {"dropout": 0.0, "feature_dropout": 0.0, "modality_dropout": 0.0, "label_smoothing": 0.0}
    training = trained(small_config(epochs=30, learning_rate=3e-3, memory=False, **still))
    losses = [row["ce_loss"] for row in training.history]
    assert losses[-1] < 0.5 * losses[0]
    assert training.metrics("train")["fused"]["weighted_f1"] > 0.9


def test_the_best_epoch_on_the_validation_set_is_kept_if_asked_for() -> None:
    training = trained(small_config(epochs=12, select_on="valid"))
    scores = [row["valid_weighted_f1"] for row in training.history]
    assert training.metrics("valid")["fused"]["weighted_f1"] == max(scores)


def test_the_last_epoch_needs_no_validation_set() -> None:
    corpus = small_corpus()
    without = replace(corpus, split=np.where(corpus.split == "valid", "test", corpus.split))
    assert trained(small_config(), without).metrics("valid") == {}
    with pytest.raises(UserError, match="no labelled utterance in split 'valid', to choose the epoch on"):
        Training(without, small_config(select_on="valid"), 0, CPU)


def test_a_text_only_corpus_has_no_students() -> None:
    training = trained(small_config(), small_corpus(("text",)))
    assert list(training.metrics("test")) == ["fused", "text"]
    assert not {"kd_loss", "feature_kd_loss"} & training.history[0].keys()


def test_a_dialogue_never_loses_every_modality() -> None:
    training = Training(small_corpus(), small_config(modality_dropout=0.5), 0, CPU)
    batch = collate(training.corpus, training.dialogues["train"])
    has = torch.stack([batch.present[modality].any(dim=1) for modality in MODALITIES])
    for _ in range(20):
        thinned = training._thinned(batch)
        left = torch.stack([thinned.present[modality].any(dim=1) for modality in MODALITIES])
        assert (left & has).any(dim=0).all()
        assert not left.all()


def test_dialogues_of_a_batch_are_about_as_long_as_each_other() -> None:
    corpus = small_corpus(lengths=tuple(range(1, 61)))
    parts = alike_in_length(corpus, np.arange(60), 8, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(60))
    assert [len(part) for part in parts].count(8) == 7
    assert np.mean([np.ptp(part) for part in parts]) < 20


def test_the_prior_is_that_of_the_training_utterances_and_is_taken_off_at_prediction() -> None:
    training = trained(small_config(epochs=1))
    counts = training.corpus.class_counts(training.dialogues["train"])
    np.testing.assert_allclose(training.model.log_prior.exp(), counts / counts.sum(), rtol=1e-5)
    batch = collate(training.corpus, training.dialogues["test"])
    before = training.model.eval()(batch).logits
    training.model.prior_adjustment = 0.5
    expected = before - 0.5 * training.model.log_prior
    torch.testing.assert_close(training.model(batch).logits, expected)
    adjusted = trained(small_config(epochs=1, prior_adjustment=0.5))
    assert same(weights(training), weights(adjusted))


def test_statistics_come_from_the_training_rows() -> None:
    corpus = small_corpus()
    training = Training(corpus, small_config(), 0, CPU)
    rows = corpus.features["audio"][corpus.rows(corpus.dialogues("train"))]
    np.testing.assert_allclose(training.model.standardize("audio").mean, np.nanmean(rows, axis=0), rtol=1e-5)
    np.testing.assert_allclose(training.model.standardize("audio").sd, np.nanstd(rows, axis=0), rtol=1e-5)


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
    assert training.metrics("test")["fused"]["f1"]["unseen"] == 0


@pytest.mark.parametrize("split", ["train", "valid"])
def test_nothing_to_learn_from_is_said(split: str) -> None:
    corpus = small_corpus()
    labels = corpus.labels.copy()
    labels[corpus.rows(corpus.dialogues(split))] = IGNORE_INDEX
    with pytest.raises(UserError, match=f"no labelled utterance in split '{split}'"):
        Training(replace(corpus, labels=labels), small_config(select_on="valid"), 0, CPU)


def test_a_modality_that_training_never_has_is_said() -> None:
    corpus = small_corpus()
    audio = corpus.features["audio"].copy()
    audio[corpus.rows(corpus.dialogues("train"))] = np.nan
    with pytest.raises(UserError, match="audio is missing in every training row; leave it out"):
        Training(replace(corpus, features={**corpus.features, "audio": audio}), small_config(), 0, CPU)
    audio = np.nan_to_num(corpus.features["audio"])
    audio[corpus.rows(corpus.dialogues("train")), 3] = np.nan
    with pytest.raises(UserError, match=r"training row \(column 3 is NaN in \d+ rows that hold other values\)"):
        Training(replace(corpus, features={**corpus.features, "audio": audio}), small_config(), 0, CPU)


def with_audio(change: dict[tuple[str, int, int], float]) -> Corpus:
    """The small corpus, with values of audio at (split, row of it, column) replaced."""
    corpus = small_corpus()
    audio = corpus.features["audio"].copy()
    for (split, row, column), value in change.items():
        audio[corpus.rows(corpus.dialogues(split))[row]] = 0
        audio[corpus.rows(corpus.dialogues(split))[row], column] = value
    return replace(corpus, features={**corpus.features, "audio": audio})


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("value", [3e30, -1e8])
def test_a_value_far_from_the_others_is_named_before_any_work(split: str, value: float) -> None:
    place = "small: audio, dialogue 'd.*', utterance .*: (3e[+]30|-1e[+]08) in column 4, where .*; mend it"
    with pytest.raises(UserError, match=place):
        Training(with_audio({(split, 2, 4): value}), small_config(), 0, CPU)


def test_features_of_any_unit_and_sparse_ones_are_trained_on() -> None:
    corpus = small_corpus()
    audio = corpus.features["audio"] * np.float32([1e20, 1e-20, 1, 1, 1])
    audio[:, 2] = np.where(np.arange(len(audio)) == 7, 5, 0)  # zero but once
    audio[:, 3] = 1e6 + 1e-3 * corpus.features["audio"][:, 3]
    training = trained(small_config(epochs=1), replace(corpus, features={**corpus.features, "audio": audio}))
    assert all(np.isfinite(row["loss"]) for row in training.history)


def test_a_test_set_without_labels_is_left_out_of_the_metrics() -> None:
    corpus = small_corpus()
    labels = corpus.labels.copy()
    labels[corpus.rows(corpus.dialogues("test"))] = IGNORE_INDEX
    assert trained(small_config(epochs=1), replace(corpus, labels=labels)).metrics("test") == {}


def test_a_loss_that_is_not_finite_stops_the_run_with_advice() -> None:
    with pytest.raises(UserError, match="lower learning_rate"):
        trained(small_config(learning_rate=1e30))


def test_legacy_selection_on_the_test_set_is_named_in_the_history() -> None:
    training = trained(small_config(select_on="test"))
    assert all("test_weighted_f1" in row and "valid_weighted_f1" not in row for row in training.history)

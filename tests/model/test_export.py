"""An exported file answers as `merc_model.predict` does, for any number of dialogues, utterances and speakers."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from merc_model.cli import main
from merc_model.config import MODALITIES
from merc_model.data.batch import collate
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.evaluation import FUSED, predict
from merc_model.export import FACTS, export
from merc_model.model import MercModel
from merc_model.predictor import Predictor
from tests.model.command import failure
from tests.model.small import DIMS, LABEL_NAMES, small_config, small_corpus

TOLERANCE = 1e-5
Answer = Callable[[dict[str, Any]], NDArray[np.float32]]


def made(modalities: tuple[str, ...] = MODALITIES, **settings: Any) -> MercModel:
    torch.manual_seed(0)
    model = MercModel({modality: DIMS[modality] for modality in modalities}, LABEL_NAMES, small_config(**settings))
    for parameter in model.parameters():  # no part may hide behind a zero initialisation
        torch.nn.init.normal_(parameter, std=0.3)
    training = collate(small_corpus(seed=1), np.arange(15))
    for modality in model.modalities:
        model.standardize(modality).fit(training.features[modality][training.utterance_mask] + 0.5)
    model.remember(training)
    model.fit_linear([training])
    return model.eval()


def inputs(corpus: Corpus, dialogues: NDArray[np.int64]) -> dict[str, Any]:
    """What stands in a corpus, NaN rows and all, padded with anything."""
    batch = collate(corpus, dialogues)
    features = {}
    for modality, rows in corpus.features.items():
        padded = torch.full_like(batch.features[modality], 7.0)
        padded[batch.utterance_mask] = torch.from_numpy(rows[corpus.rows(dialogues)])
        features[modality] = padded
    return {**features, "speakers": batch.speakers, "utterance_mask": batch.utterance_mask}


def onnx_answers(path: Path) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, {name: value.numpy() for name, value in given.items()})[0]


def torch_answers(path: Path, known: dict[str, str]) -> Answer:
    """``known`` gets the extra files; what is slow is reading, so it is read once."""
    program = torch.export.load(path, extra_files=known).module()

    def answers(given: dict[str, Any]) -> NDArray[np.float32]:
        features = {modality: given[modality] for modality in DIMS if modality in given}
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = program(features, given["speakers"], given["utterance_mask"]).numpy()
        return probabilities

    return answers


def assert_same(model: MercModel, answer: Answer) -> None:
    corpus = small_corpus(tuple(model.modalities), lengths=(1, 7, 30, 3, 12))
    silent = {modality: rows.copy() for modality, rows in corpus.features.items()}
    silent["text"][corpus.rows(np.array([1]))] = np.nan  # a dialogue without any text
    crowd = np.arange(len(corpus.speakers)) * 11
    for asked in (corpus, dataclasses.replace(corpus, features=silent), dataclasses.replace(corpus, speakers=crowd)):
        for dialogues in (np.arange(5), np.array([0]), np.array([2]), np.array([3, 1])):
            expected = predict(model, asked, dialogues).probabilities[FUSED]
            given = inputs(asked, dialogues)
            answers = answer(given)
            np.testing.assert_allclose(answers[given["utterance_mask"].numpy()], expected, atol=TOLERANCE, rtol=0)
            assert not answers[~given["utterance_mask"].numpy()].any()


SETTINGS: list[dict[str, Any]] = [
    {"modalities": ("text",), "causal": True},  # of one modality: the larger a graph, the longer it takes
    {"modalities": ("text", "audio"), "causal": True},
    {},
    {"fusion": "early"},
    {"text_leading": False, "memory": False, "prior_adjustment": 0.5},
    {"linear": False, "speaker_relative": False, "memory_reach": 0.0},
]
GRID = [
    pytest.param(values, id=" ".join(map(str, values)) or "full", marks=[pytest.mark.full] if number > 0 else [])
    for number, values in enumerate(SETTINGS)
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_predictor_answers_as_predict_does(settings: dict[str, Any]) -> None:
    model = made(**settings)
    predictor = Predictor(model)

    def answer(given: dict[str, Any]) -> NDArray[np.float32]:
        features = {modality: given[modality] for modality in model.modalities}
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = predictor(features, given["speakers"], given["utterance_mask"]).numpy()
        return probabilities

    assert_same(model, answer)


@pytest.mark.parametrize("settings", GRID)
def test_the_torch_program_does(settings: dict[str, Any], tmp_path: Path) -> None:
    model, path = made(**settings), tmp_path / "predictor.pt2"
    assert export(model, "torch", path) <= TOLERANCE
    known = {FACTS: ""}
    assert_same(model, torch_answers(path, known))
    assert json.loads(known[FACTS])["label_names"] == list(LABEL_NAMES)


@pytest.mark.parametrize("settings", GRID)
def test_the_onnx_graph_does(settings: dict[str, Any], tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model, path = made(**settings), tmp_path / "predictor.onnx"
    assert export(model, "onnx", path) <= TOLERANCE
    assert_same(model, onnx_answers(path))
    import onnx

    known = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert known["label_names"] == list(LABEL_NAMES)
    assert known["dims"] == model.dims
    assert known["causal"] is bool(settings.get("causal"))


def test_what_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = (b"", lambda inputs: torch.zeros(*inputs[1].shape, len(LABEL_NAMES)))
    monkeypatch.setattr("merc_model.export._program", lambda predictor, known: zeros)
    with pytest.raises(UserError, match=r"differ by .* nothing was written"):
        export(made(), "torch", tmp_path / "predictor.pt2")
    assert not list(tmp_path.iterdir())


def test_the_command(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("merc_model.export._program", lambda predictor, known: (b"here", lambda i: predictor(*i)))
    out = tmp_path / "mine.pt2"
    assert main(["export", str(finished), "--to", "torch", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "text 8, audio 5, visual 6" in said
    assert "calm, glad, cross" in said
    assert out.read_bytes() == b"here"
    assert "exists" in failure(["export", str(finished), "--to", "torch", "--out", str(out)], capsys)
    assert "not a run folder" in failure(["export", str(tmp_path / "none"), "--to", "torch"], capsys)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for to, needed in (("onnx", "onnx and onnxscript and onnxruntime"), ("hub", "huggingface_hub")):
        line = failure(["export", str(finished), "--to", to, "--out", str(tmp_path / to)], capsys)
        assert f"needs {needed}: pip install 'merc-kdc[export]'" in line
        assert not (tmp_path / to).exists()

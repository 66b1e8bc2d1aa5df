from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model import report
from merc_model.ablation.cells import Ablation
from merc_model.ablation.logistic import LogisticBaseline
from merc_model.ablation.rows import ROWS, chosen, configuration
from merc_model.ablation.tables import markdown
from merc_model.cli import main
from merc_model.config import IGNORE_INDEX, load_preset, presets
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.model import MercModel
from tests.model.small import DIMS, LABEL_NAMES, small_config, small_corpus

SMALL = [
    "--set",
    "hidden_dim=16",
    "heads=2",
    "layers=1",
    "projection_dim=8",
    "epochs=2",
    "batch_dialogues=4",
    "memory=false",
    "linear=false",
]
FEW = ["--rows", "logistic,early,ce,elcl,full"]


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "small.npz"
    labels = small_corpus().labels.copy()
    labels[::9] = IGNORE_INDEX
    replace(small_corpus(), labels=labels).save(path)
    return path


def ablate(corpus_path: Path, out: Path, *arguments: str) -> int:
    return main(["ablate", "--data", str(corpus_path), *SMALL, "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def done(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "ablation"
    assert ablate(corpus_path, out, *FEW, "--seeds", "2", "--jobs", "1") == 0
    return out


def predicted(folder: Path) -> dict[str, Any]:
    """File → predicted classes, of every training."""
    paths = (folder / "cells").rglob("*.json")
    return {str(path.relative_to(folder)): json.loads(path.read_text())["predicted"] for path in paths}


def parameters(config: Any) -> int:
    return sum(parameter.numel() for parameter in MercModel(DIMS, LABEL_NAMES, config).parameters())


@pytest.mark.parametrize("preset", presets())
def test_every_row_is_a_configuration_and_has_a_row_before(preset: str) -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len({row.title for row in ROWS}) == len(ROWS)
    base = load_preset(preset)
    for row in ROWS:
        assert (row.before is None) == (row.name == "logistic")
        assert row.before is None or names.index(row.before) < names.index(row.name)
        config = configuration(row, base, DIMS, LABEL_NAMES)
        assert (config is None) == (row.name == "logistic")
    full = configuration(chosen(["full"])[0], base, DIMS, LABEL_NAMES)
    assert full == base


def test_early_concatenation_is_as_large_as_the_full_model() -> None:
    for base in (load_preset("iemocap"), load_preset("synthetic"), small_config()):
        early = configuration(chosen(["early"])[0], base, DIMS, LABEL_NAMES)
        assert early is not None
        assert early.hidden_dim % early.heads == 0
        assert abs(parameters(early) / parameters(base) - 1) < 0.1


def test_rows_keep_the_order_of_the_table() -> None:
    assert [row.name for row in chosen(["full", "early"])] == ["early", "full"]
    assert chosen([]) == ROWS


def test_the_table(done: Path, corpus_path: Path) -> None:
    results = json.loads((done / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["logistic", "early", "ce", "elcl", "full"]
    corpus = Corpus.load(corpus_path)
    assert results["utterances"] == corpus.class_counts(corpus.dialogues("test")).sum()
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["full"]["same_as"] == "elcl", (
        "without memory and linear model, full has prototypes as candidates: trained once"
    )
    assert len(list((done / "cells").rglob("*.json"))) == 1 + 2 * 3
    for row in results["rows"]:
        for average in ("weighted_f1", "macro_f1", "accuracy", "uar"):
            assert len(row[average]["of_seeds"]) == (1 if row["name"] == "logistic" else 2)
            assert row[average]["mean"] == pytest.approx(np.mean(row[average]["of_seeds"]))
        assert list(row["f1"]) == list(LABEL_NAMES)
    assert rows["logistic"]["heads"] == rows["early"]["heads"] == {}
    assert list(rows["ce"]["heads"]) == ["text", "audio", "visual"]
    assert rows["logistic"]["over"].keys() == set()
    assert rows["early"]["over"].keys() == {"logistic"}
    assert rows["ce"]["over"].keys() == {"early", "logistic"}
    assert rows["full"]["over"].keys() == {"logistic", "early", "ce"}
    assert rows["full"]["over"]["ce"].keys() == {"fused", "text", "audio", "visual"}
    gap = rows["full"]["over"]["ce"]["fused"]["macro_f1"]
    assert gap["mean"] == pytest.approx(rows["full"]["macro_f1"]["mean"] - rows["ce"]["macro_f1"]["mean"])
    assert gap["low"] <= gap["high"]
    text = (done / "results.md").read_text()
    assert text == markdown(results)
    for row in results["rows"]:
        assert text.count(row["title"]) >= 3
    assert (done / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_cut_off_goes_on(done: Path, corpus_path: Path, tmp_path: Path, capsys: Any) -> None:
    before, table = predicted(done), (done / "results.md").read_text()
    times = {path: path.stat().st_mtime_ns for path in (done / "cells").rglob("*.json")}
    lost = min(path for path in times if "logistic" not in str(path))
    lost.rename(lost.with_name(f".{lost.name}.partial"))  # what a kill in the middle of writing leaves
    assert ablate(corpus_path, done, *FEW, "--seeds", "2", "--jobs", "1") == 0
    said = capsys.readouterr()
    assert "1 of 7 trainings to do, 1 at a time" in said.err
    assert "1 of 1 trained" in said.err
    assert predicted(done) == before
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {lost}
    assert table.splitlines()[:3] == (done / "results.md").read_text().splitlines()[:3]
    assert ablate(corpus_path, done, "--rows", "ce", "--seeds", "1", "--jobs", "1") == 0, "part of what is there"
    assert "trainings to do" not in capsys.readouterr().err


@pytest.mark.full
def test_jobs_and_cores_change_nothing(done: Path, corpus_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "beside"
    assert ablate(corpus_path, out, "--rows", "logistic,ce", "--seeds", "2", "--jobs", "2") == 0
    beside, alone = predicted(out), predicted(done)
    assert len(beside) == 3
    assert beside == {name: alone[name] for name in beside}


def test_folds_predict_every_training_dialogue_once_and_no_other(corpus_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "folds"
    assert ablate(corpus_path, out, "--rows", "logistic,ce", "--seeds", "1", "--jobs", "1", "--folds", "3") == 0
    results = json.loads((out / "results.json").read_text())
    corpus = Corpus.load(corpus_path)
    own = np.flatnonzero(corpus.split != "test")
    assert results["utterances"] == corpus.class_counts(own).sum()
    assert results["evaluated_on"] == "3 folds"
    assert len(predicted(out)) == 6
    assert results["rows"][1]["weighted_f1"]["sd"] is None
    assert results["rows"][1]["over"]["logistic"]["fused"]["weighted_f1"]["p_seeds"] is None


def test_what_is_trained_on_never_holds_what_is_predicted() -> None:
    for folds in (None, 3):
        asked = Ablation(small_corpus(), small_config(), chosen([]), 1, folds, "cpu", Path("none"))
        for part in asked.parts():
            held = set(part.corpus.dialogue_ids[part.dialogues].tolist())
            learnt = part.training.dialogue_ids[part.training.dialogues("train")].tolist()
            assert not held & set(learnt)
            assert not len(part.training.dialogues("test"))
            assert set(part.corpus.split[part.dialogues].tolist()) == ({"test"} if folds is None else {"valid"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "ce,nope"], "--rows: no row 'nope'; there are: logistic, early, ce"),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--folds", "1"], "folds: expected 2 to 12, the dialogues to train on, got 1"),
        (["--set", "select_on=test"], "merc ablate chooses nothing on the test set"),
        (["--set", "nope=1"], "no setting 'nope'"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], message: str, corpus_path: Path, tmp_path: Path, capsys: Any
) -> None:
    assert ablate(corpus_path, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_question_is_refused(done: Path, corpus_path: Path, tmp_path: Path, capsys: Any) -> None:
    def refused(out: Path, *arguments: str) -> str:
        assert ablate(corpus_path, out, *FEW, "--seeds", "2", *arguments) == 2
        return str(capsys.readouterr().err)

    assert "was started with another config;" in refused(done, "--set", "dropout=0.1")
    assert "was started with another folds;" in refused(done, "--folds", "3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "is not the folder of an ablation" in refused(tmp_path / "mine")
    assert "is not the folder of an ablation" in refused(tmp_path / "mine" / "letter.txt")
    cell = next((done / "cells" / "logistic").iterdir())
    content = cell.read_text()
    cell.write_text(content[:50])
    assert "delete it and go on" in refused(done)
    cell.write_text(content)


@pytest.mark.parametrize("split", ["train", "test"])
def test_absurd_values_are_named_before_any_work(split: str, tmp_path: Path, capsys: Any) -> None:
    corpus = small_corpus()
    corpus.features["audio"][corpus.rows(corpus.dialogues(split))[1], 2] = 3e30
    corpus.save(tmp_path / "c.npz")
    assert ablate(tmp_path / "c.npz", tmp_path / "out", "--rows", "logistic,ce") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"audio, dialogue '{corpus.dialogue_ids[corpus.dialogues(split)[0]]}', utterance 2: 3e+30" in error
    assert not (tmp_path / "out").exists()


def test_without_a_test_set_there_are_folds(tmp_path: Path, capsys: Any) -> None:
    corpus = small_corpus()
    corpus.only(np.flatnonzero(corpus.split != "test")).save(tmp_path / "c.npz")
    assert ablate(tmp_path / "c.npz", tmp_path / "out") == 2
    assert "no labelled test utterance; compare on folds, with --folds 4" in capsys.readouterr().err


def echoing(dialogues: int = 40, length: int = 12) -> Corpus:
    """Every utterance's class is what the one before it showed."""
    generator = np.random.default_rng(0)
    shown = generator.integers(3, size=(dialogues, length))
    labels = np.concatenate([generator.integers(3, size=(dialogues, 1)), shown[:, :-1]], axis=1).ravel()
    text = np.eye(3, dtype=np.float32)[shown.ravel()] + 0.1 * generator.normal(size=(labels.size, 3))
    return Corpus(
        name="echo",
        features={"text": text.astype(np.float32)},
        labels=labels,
        speakers=np.zeros(labels.size, np.int64),
        offsets=np.arange(dialogues + 1) * length,
        dialogue_ids=np.array([str(number) for number in range(dialogues)]),
        split=np.array(["train"] * (dialogues - 8) + ["test"] * 8),
        label_names=np.array(LABEL_NAMES),
    )


def test_logistic_regression_looks_as_far_as_it_pays() -> None:
    corpus = echoing()
    baseline = LogisticBaseline(corpus)
    assert baseline.window >= 1
    assert baseline.parameters == 3 * ((2 * baseline.window + 3) * 3 + 1)
    test = corpus.dialogues("test")
    inner = np.ones((8, 12), dtype=bool)
    inner[:, 0] = False  # nobody can know the first
    right = baseline.predict(corpus, test) == corpus.labels[corpus.rows(test)]
    assert right[inner.ravel()].mean() > 0.95


def test_neighbours_end_with_the_dialogue_and_missing_rows_are_the_mean() -> None:
    corpus = small_corpus(lengths=(2, 3, *[4] * 13))
    baseline = LogisticBaseline(corpus)
    width = DIMS["text"] + 2 * (DIMS["audio"] + DIMS["visual"])
    inputs = baseline._inputs(corpus, 1).reshape(-1, 5, width)
    before, own, after = inputs[:, 3], inputs[:, 0], inputs[:, 4]
    np.testing.assert_array_equal(after[1], 0)
    np.testing.assert_array_equal(before[2], 0)
    np.testing.assert_array_equal(before[3], own[2])
    np.testing.assert_array_equal(after[3], own[4])
    missing = np.isnan(corpus.features["audio"]).any(axis=1)
    assert missing.any()
    audio = slice(DIMS["text"], DIMS["text"] + 2 * DIMS["audio"])
    np.testing.assert_array_equal(own[missing, audio], 0)


def test_logistic_regression_is_given_the_means_of_the_speaker_and_of_the_others() -> None:
    corpus = replace(small_corpus(lengths=(4, *[4] * 14)), speakers=np.tile([0, 1, 0, 0], 15))
    baseline = LogisticBaseline(corpus)
    width = DIMS["text"] + 2 * (DIMS["audio"] + DIMS["visual"])
    own, mean, others = baseline._inputs(corpus, 0).reshape(-1, 3, width)[:4].transpose(1, 0, 2)
    near, far = np.exp(-2 / 8), np.exp(-3 / 8)
    np.testing.assert_allclose(mean[0], (near * own[2] + far * own[3]) / (near + far), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mean[1], 0)
    np.testing.assert_allclose(others[[0, 2, 3]], own[[1, 1, 1]], rtol=1e-5, atol=1e-6)


def test_one_class_is_too_few_for_logistic_regression() -> None:
    corpus = small_corpus()
    with pytest.raises(UserError, match="utterances of one class only"):
        LogisticBaseline(replace(corpus, labels=np.zeros_like(corpus.labels)))


def test_the_picture_takes_any_title(tmp_path: Path) -> None:
    report.scores(tmp_path / "p.png", ["a $ b", "c"], {"macro_f1": [[0.1], [0.2, 0.4]]}, "on $")
    assert (tmp_path / "p.png").stat().st_size > 0

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

import merc_model
from merc_model import run
from merc_model.cli import main
from merc_model.data.corpus import Corpus
from merc_model.evaluation import predict
from merc_model.training import Training
from tests.model.command import PICTURES, SMALL, conversation, failure
from tests.model.small import LABEL_NAMES, small_corpus


def test_the_run_folder(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == sorted(
        ["config.json", "model.safetensors", "history.jsonl", "metrics.json", *PICTURES]
    )
    metrics = json.loads((finished / "metrics.json").read_text())
    assert list(metrics) == ["test", "valid", "heads", "seconds", "seed"]
    keys = ["weighted_f1", "macro_f1", "accuracy", "uar", "f1", "confusion", "utterances"]
    assert list(metrics["test"]) == list(metrics["valid"]) == keys
    assert list(metrics["test"]["f1"]) == list(LABEL_NAMES)
    assert list(metrics["heads"]) == ["text", "audio", "visual"]
    assert all(list(head) == ["test"] and list(head["test"]) == keys for head in metrics["heads"].values())
    assert list(metrics["seconds"]) == ["training"]
    assert metrics["seed"] == 0
    config = json.loads((finished / "config.json").read_text())
    assert config["format"] == 2
    assert config["environment"]["torch"] == torch.__version__
    assert config["config"]["hidden_dim"] == 16
    assert config["corpus"]["name"] == "small"
    assert config["corpus"]["sha256"] == small_corpus().fingerprint()
    rows = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all({"epoch", "loss", "kd_loss", "fcl_loss"} <= row.keys() for row in rows)
    for picture in finished.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_loaded_model_repeats_the_metrics(finished: Path) -> None:
    corpus = small_corpus()
    predictions = predict(merc_model.load(finished), corpus, corpus.dialogues("test"))
    assert predictions.metrics(LABEL_NAMES) == json.loads((finished / "metrics.json").read_text())["test"]


def test_statistics_are_saved_with_the_weights(finished: Path) -> None:
    tensors = safetensors.numpy.load_file(finished / "model.safetensors")
    corpus = small_corpus()
    rows = corpus.features["text"][corpus.rows(corpus.dialogues("train"))]
    np.testing.assert_allclose(tensors["features.text.standardize.mean"], rows.mean(axis=0), rtol=1e-5)


def test_evaluate(finished: Path, corpus_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((finished / "metrics.json").read_text())["test"]["weighted_f1"]
    assert main(["evaluate", str(finished)]) == 0
    assert f"weighted_f1  {expected:.4f}" in capsys.readouterr().out
    assert (
        main(["evaluate", str(finished), "--data", str(corpus_path), "--split", "valid", "--drop", "audio,visual"]) == 0
    )
    assert "small, valid set, without audio and visual" in capsys.readouterr().out


def test_evaluate_notices_a_corpus_that_has_changed(finished: Path, corpus_path: Path, capsys: Any) -> None:
    before = corpus_path.read_bytes()
    try:
        small_corpus(seed=1).save(corpus_path)
        assert "is not what the run was trained on" in failure(["evaluate", str(finished)], capsys)
    finally:
        corpus_path.write_bytes(before)


def test_predict(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    conversation(tmp_path / "talk")
    assert main(["predict", str(finished), "talk.npz"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["speaker"] for row in rows] == list("001011")
    for row in rows:
        probabilities = {name: float(row[name]) for name in LABEL_NAMES}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["emotion"] == max(probabilities, key=lambda name: probabilities[name])
    assert (tmp_path / "talk.timeline.png").read_bytes().startswith(b"\x89PNG")
    assert main(["predict", str(finished), "talk.json", "--out", "said.json"]) == 0
    for mine, row in zip(json.loads(Path("said.json").read_text()), rows, strict=True):
        assert mine["probabilities"] == pytest.approx({name: float(row[name]) for name in LABEL_NAMES}, abs=2e-6)
    assert Path("said.png").exists()
    assert main(["predict", str(finished), "talk.json", "--out", "again.csv"]) == 0
    assert next(csv.DictReader(Path("again.csv").read_text().splitlines()))["emotion"] == rows[0]["emotion"]


def test_predict_overwrites_nothing(finished: Path, tmp_path: Path, capsys: Any) -> None:
    conversation(tmp_path / "talk")
    before = (tmp_path / "talk.json").read_bytes()
    (tmp_path / "photo.png").write_text("mine")
    predict = ["predict", str(finished), str(tmp_path / "talk.json"), "--out"]
    assert "exists; move it away" in failure([*predict, str(tmp_path / "talk.json")], capsys)
    assert "is the conversation itself" in failure([*predict, str(tmp_path / "talk.json"), "--force"], capsys)
    assert (tmp_path / "talk.json").read_bytes() == before
    assert main([*predict, str(tmp_path / "photo.csv")]) == 0
    assert (tmp_path / "photo.png").read_text() == "mine"
    assert (tmp_path / "photo-2.png").exists()
    capsys.readouterr()
    assert "photo.csv exists" in failure([*predict, str(tmp_path / "photo.csv")], capsys)
    assert main([*predict, str(tmp_path / "photo.csv"), "--force"]) == 0
    assert (tmp_path / "photo.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "photo-3.png").exists()


def test_names_with_a_dollar_sign_are_drawn(finished: Path, tmp_path: Path) -> None:
    talk = tmp_path / "$\\frac$.npz"
    np.savez(talk, text=np.zeros((3, 8)))
    assert main(["predict", str(finished), str(talk), "--out", str(tmp_path / "said.csv")]) == 0


@pytest.mark.parametrize("length", [1, 400, pytest.param(2000, marks=pytest.mark.full)])
def test_predict_short_and_long(finished: Path, tmp_path: Path, length: int) -> None:
    np.savez(tmp_path / "talk.npz", text=np.random.default_rng(0).normal(size=(length, 8)))
    assert main(["predict", str(finished), str(tmp_path / "talk.npz"), "--out", str(tmp_path / "said.csv")]) == 0
    assert len((tmp_path / "said.csv").read_text().splitlines()) == length + 1


def test_train_without_data_is_synthetic_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*SMALL, "epochs=1"]
    assert main(["train", *small, "--out", str(tmp_path / "run"), "--seed", "3"]) == 0
    output = capsys.readouterr().out
    assert "synthetic, test set, seed 3 (synthetic data" in output
    assert f"report: {tmp_path / 'run'}" in output
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_seeds_are_summarised(corpus_path: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", str(corpus_path), *SMALL, "--seeds", "2", "--out", str(tmp_path / "runs")]
    assert main(arguments) == 0
    scores = [json.loads((tmp_path / f"runs/seed-{n}/metrics.json").read_text())["test"]["accuracy"] for n in (0, 1)]
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert summary["test"]["accuracy"] == pytest.approx({"mean": np.mean(scores), "sd": np.std(scores, ddof=1)})


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    output = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in output
    assert "backend reference: on" in output
    assert "backend triton: o" in output


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("epochs_done", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_weights(
    epochs_done: int, finished: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_epochs = Training.epochs

    def interrupted(self: Training) -> Iterator[dict[str, Any]]:
        for done, row in enumerate(whole_epochs(self), start=1):
            yield row
            if done == epochs_done:
                raise KeyboardInterrupt

    folder = tmp_path / "run"
    arguments = ["train", "--data", str(corpus_path), *SMALL, "--out", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(run, "_SECONDS_BETWEEN_SAVES", 0.0)
        patch.setattr(Training, "epochs", interrupted)
        assert main(arguments) == 130
    assert (folder / "resume.pt").exists()
    assert main([*arguments, "--resume"]) == 0
    assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert not (folder / "resume.pt").exists()
    before = (folder / "metrics.json").stat().st_mtime_ns
    assert main([*arguments, "--resume"]) == 0  # a finished run stays as it is
    assert (folder / "metrics.json").stat().st_mtime_ns == before


def test_a_killed_process_resumes_to_the_same_weights(finished: Path, corpus_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "--data", str(corpus_path), *SMALL, "--out", str(folder)]
    program = (
        "import sys, merc_model.run as run; run._SECONDS_BETWEEN_SAVES = 0;"
        "from merc_model.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "resume.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert main([*arguments, "--resume"]) == 0
    assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_resume_refuses_another_run(finished: Path, corpus_path: Path, tmp_path: Path, capsys: Any) -> None:
    again = ["train", "--data", str(corpus_path), "--out", str(finished)]
    assert "exists; go on in it with --resume" in failure([*again, *SMALL], capsys)
    resume = [*again, "--resume", *SMALL]
    assert "started with another epochs" in failure([*resume, "epochs=3"], capsys)
    assert "started with another seed" in failure([*resume, "--seed", "1"], capsys)
    other = tmp_path / "other.npz"
    small_corpus(seed=1).save(other)
    assert "started with another data" in failure([*resume, "--data", str(other)], capsys)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "mine.txt").write_text("mine")
    refused = failure(["train", "--data", str(corpus_path), "--out", str(plain), "--resume"], capsys)
    assert "is not a run folder" in refused
    assert [path.name for path in plain.iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_what_was_there(corpus_path: Path, tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "import merc_model.run as run; run._SECONDS_BETWEEN_SAVES = 0;"
        "from merc_model.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["train", "--data", str(corpus_path), *SMALL, "--out", str(tmp_path / "run")]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "resume.pt: cannot be written: File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "history.jsonl"]
    assert main([*arguments, "--resume"]) == 0


def bad_corpora(path: Path) -> dict[str, Corpus | dict[str, Any]]:
    good = small_corpus()
    arrays = dict(np.load(path))
    rows = len(good.labels)
    nowhere = np.full((rows, 5), np.nan, np.float32)
    renamed = np.where(good.split == "valid", "dev", good.split)
    untrained = np.where(good.split == "train", "test", good.split)
    return {
        "no text": replace(good, features={"audio": good.features["audio"]}),
        "audio: every row has a NaN": {**arrays, "audio": nowhere},
        "offsets: must not fall": {**arrays, "offsets": arrays["offsets"][[0, 2, 1, *range(3, 16)]]},
        "labels: expected 0 to 2": {**arrays, "labels": arrays["labels"] + 1},
        "has no utterance": {**arrays, "offsets": np.where(np.arange(16) == 1, 0, arrays["offsets"])},
        "text: expected": {**arrays, "text": arrays["text"][:-1]},
        "no array 'speakers'": {key: value for key, value in arrays.items() if key != "speakers"},
        "split: expected train, valid, test, got 'dev'": {**arrays, "split": renamed},
        "no labelled utterance in split 'train'": {**arrays, "split": untrained},
    }  # fmt: skip


def test_bad_corpora_get_one_line(corpus_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    for number, (message, bad) in enumerate(bad_corpora(corpus_path).items()):
        path = tmp_path / f"bad{number}.npz"
        if isinstance(bad, Corpus):
            bad.save(path)
        else:
            np.savez(path, **bad)
        assert message in failure(["train", "--data", str(path), *SMALL, "--out", str(out)], capsys)
        assert not out.exists()


def test_bad_files_get_one_line(finished: Path, corpus_path: Path, tmp_path: Path, capsys: Any) -> None:
    cut = tmp_path / "cut.npz"
    cut.write_bytes(corpus_path.read_bytes()[:1000])
    assert "no such file" in failure(["train", "--data", str(tmp_path / "nowhere.npz")], capsys)
    assert "is a folder" in failure(["train", "--data", str(tmp_path)], capsys)
    assert "cut short" in failure(["train", "--data", str(cut)], capsys)
    assert "is not a run folder" in failure(["evaluate", str(tmp_path)], capsys)
    assert "is not a run folder" in failure(["predict", str(cut), str(cut)], capsys)
    for config in ([], "abc", {"epochs": "a"}):
        damaged = tmp_path / "damaged"
        shutil.copytree(finished, damaged, dirs_exist_ok=True)
        values = json.loads((finished / "config.json").read_text())
        (damaged / "config.json").write_text(json.dumps(values | {"config": config}))
        assert "config.json: " in failure(["evaluate", str(damaged)], capsys)
    assert "no such file" in failure(["predict", str(finished), str(tmp_path / "nowhere.json")], capsys)
    assert "holds 15 dialogues" in failure(["predict", str(finished), str(corpus_path)], capsys)
    assert "no such file" in failure(
        ["convert", str(tmp_path / "nowhere.pkl"), "--out", str(tmp_path / "o.npz")], capsys
    )
    model = finished / "model.safetensors"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((finished / "config.json").read_bytes())
    assert "has no model yet" in failure(["evaluate", str(broken)], capsys)
    (broken / "model.safetensors").write_bytes(model.read_bytes()[:5000])
    assert "does not hold the weights" in failure(["evaluate", str(broken)], capsys)
    (broken / "config.json").write_text("{}")
    assert "run format None" in failure(["evaluate", str(broken)], capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "not valid JSON"),
        ("[1, 2]", "expected an object"),
        ('{"speakers": ["a"]}', "no features"),
        ('{"text": [[1, 2], [1]]}', "rows of different lengths: 1, 2"),
        ('{"text": [["a"]]}', "expected numbers"),
        ('{"text": 3}', "expected a list with a list of numbers"),
        ('{"text": [null, null]}', "no features"),
        ('{"text": [[1, 2]]}', "text: expected 8 features a row, got 2"),
        ('{"text": [[1, 2]], "speakers": ["a", "b"]}', "speakers: expected one for each of 1 utterances"),
        ('{"text": [[1, 2]], "speakers": "ab"}', "speakers: expected a list of names or numbers"),
        ('{"text": []}', "no features"),
        (f'{{"text": [[1{"0" * 400}]]}}', "text: holds a number that is too large"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a git-lfs pointer"),
        ("<!DOCTYPE html><html>", "a web page"),
        ('{"speakers": ["Zo\udce9"]}', "not UTF-8 text (byte 17 is 0xe9); save it as UTF-8"),
    ],
)
def test_bad_conversations_get_one_line(finished: Path, tmp_path: Path, text: str, message: str, capsys: Any) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(text.encode(errors="surrogateescape"))  # the last is Latin-1
    assert message in failure(["predict", str(finished), str(path), "--out", str(tmp_path / "said.csv")], capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--preset", "nope"], "no preset 'nope'"),
        (["train", "--set", "epochs"], "expected key=value"),
        (["train", "--device", "abacus"], "--device abacus: cannot be used here"),
        (["train", "--device", "meta"], "--device meta: cannot be used here"),
        (["train", "--seeds", "0"], "--seeds: expected at least 1"),
        (["train", "--seed", "-1"], "--seed: expected"),
        (["train", "--seed", "1", "--seeds", "2"], "not allowed with"),
        (["evaluate", "RUN", "--drop", "smell"], "expected modalities such as audio,visual, got 'smell'"),
        (["predict", "RUN", "talk.npz", "--out", "said.txt"], "expected a name that ends in .csv, .json or .html"),
        (["convert", "a.pkl", "--out", "corpus.pkl"], "expected a name that ends in .npz"),
    ],
)
def test_bad_arguments_get_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in failure(arguments, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, where not even root may make a folder")
def test_an_unwritable_folder_gets_one_line(corpus_path: Path, capsys: Any) -> None:
    assert "cannot be made" in failure(["train", "--data", str(corpus_path), *SMALL, "--out", "/proc/run"], capsys)


def test_a_file_where_the_folder_should_go_gets_one_line(corpus_path: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("mine")
    line = failure(["train", "--data", str(corpus_path), *SMALL, "--out", str(tmp_path / "file" / "run")], capsys)
    assert "cannot be made: Not a directory" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_convert_refuses_to_overwrite(corpus_path: Path, capsys: Any) -> None:
    before = corpus_path.read_bytes()
    assert "exists; give another --out" in failure(["convert", "a.pkl", "--out", str(corpus_path)], capsys)
    assert corpus_path.read_bytes() == before

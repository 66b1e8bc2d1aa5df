"""Faults of data, files and machine, as the command line meets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from merc_model.cli import main
from tests.model.command import PICTURES, SMALL, conversation, failure
from tests.model.small import small_corpus


def test_values_that_no_model_can_take_are_named_before_any_work(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    good = small_corpus()
    row = good.offsets[good.dialogues("test")[0]] + 1
    scale = np.where(good.split == "test", 1e20, 1).repeat(np.diff(good.offsets))[:, None]
    one, huge = good.features["audio"].astype(float), good.features["audio"].astype(float)
    one[row, 2], huge[row, 2] = 3e30, -1.7e300
    place = f"audio, dialogue '{good.dialogue_ids[good.dialogues('test')[0]]}', utterance"
    for audio, message in (
        (one, f"{place} 2: 3e+30 in column 2"),
        (good.features["audio"] * scale, place),
        (huge, "audio: -1.7e+300, more than float32 holds, at dialogue"),
    ):
        arrays = {key: getattr(good, key) for key in ("labels", "speakers", "offsets", "dialogue_ids", "label_names")}
        np.savez("bad.npz", **good.features | {"audio": audio}, **arrays, split=good.split)
        assert message in failure(["train", "--data", "bad.npz", *SMALL, "--out", "run"], capsys)
        assert message in failure(["evaluate", str(finished), "--data", "bad.npz"], capsys)
        talk = slice(row - 1, row + 2)
        np.savez("talk.npz", text=good.features["text"][talk], audio=audio[talk])
        line = failure(["predict", str(finished), "talk.npz", "--out", "said.json"], capsys)
        assert message.split("dialogue")[0].split(",")[0] in line
        assert "dialogue 'talk', utterance" in line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.npz", "talk.npz"]


def test_weights_that_are_not_finite_give_no_answer(finished: Path, tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    tensors = safetensors.numpy.load_file(broken / "model.safetensors")
    tensors["classifier.bias"] = np.full_like(tensors["classifier.bias"], np.nan)
    safetensors.numpy.save_file(tensors, broken / "model.safetensors")
    conversation(tmp_path / "talk")
    for arguments in (["evaluate", str(broken)], ["predict", str(broken), str(tmp_path / "talk.json")]):
        assert "the model's answer is not finite" in failure(arguments, capsys)


def test_pictures_that_fail_cost_nothing(
    finished: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    arguments = ["train", "--data", str(corpus_path), *SMALL, "--out", str(tmp_path / "run")]
    conversation(tmp_path / "talk")
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", fail)
        assert main(arguments) == 0
        assert capsys.readouterr().err.count("warning: a picture was not drawn: ") == 3
        assert main(["predict", str(finished), str(tmp_path / "talk.npz")]) == 0
        output = capsys.readouterr()
        assert len(output.out.splitlines()) == 7
        assert "warning: a picture was not drawn: talk.timeline.png: RuntimeError: no ink" in output.err
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"config.json", "model.safetensors", "history.jsonl", "metrics.json"}
    assert (tmp_path / "run/model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    before = (tmp_path / "run/metrics.json").stat().st_mtime_ns
    assert main([*arguments, "--resume"]) == 0
    assert all((tmp_path / "run" / picture).exists() for picture in PICTURES)
    assert (tmp_path / "run/metrics.json").stat().st_mtime_ns == before


def test_resume_begins_anew_where_only_a_partial_file_is(corpus_path: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", str(corpus_path), *SMALL, "epochs=1", "--out", str(tmp_path / "run"), "--resume"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.partial").write_text('{"format"')
    assert main(arguments) == 0
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "x"},
        {"seed": -1},
        {"label_names": "abc"},
        {"label_names": [1, 2, 3]},
        {"corpus": []},
        {"corpus": {"name": "a", "sha256": "b", "source": None}},
        {"corpus": {"name": "a", "sha256": "b", "source": 3, "dims": {"text": 8}}},
        {"corpus": {"name": "a", "sha256": "b", "source": None, "dims": {"text": "8"}}},
        {"corpus": {"name": "a", "sha256": "b", "source": None, "dims": {"text": 10**15}}},
        {"config": {"hidden_dim": 10**8}},
        {"config": {"layers": 10**8}},
    ],
    ids=str,
)
def test_a_damaged_config_gets_one_line(finished: Path, tmp_path: Path, change: dict[str, Any], capsys: Any) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    values = json.loads((finished / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(values | change))
    failure(["evaluate", str(damaged)], capsys)


def test_a_damaged_state_or_metrics_get_one_line(
    finished: Path, corpus_path: Path, tmp_path: Path, capsys: Any
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    arguments = ["train", "--data", str(corpus_path), *SMALL, "--out", str(damaged), "--resume"]
    for metrics in ("{}", '{"test": []}', '{"test": {"f1": 1}}', "[", "\udcff"):
        (damaged / "metrics.json").write_bytes(metrics.encode(errors="surrogateescape"))
        assert "metrics.json: " in failure(arguments, capsys)
    (damaged / "metrics.json").unlink()
    for state in ([], {}, {"stage": 0}, torch.zeros(3)):
        torch.save(state, damaged / "resume.pt")
        assert "resume.pt: is damaged, or not of this run; delete it" in failure(arguments, capsys)
    (damaged / "resume.pt").write_bytes(b"PK\x03\x04")
    assert "resume.pt: cannot be read" in failure(arguments, capsys)


def test_a_full_memory_gets_one_line(corpus_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: tried 1 bytes")
    for error in (full, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("merc_model.commands.train.train", fail)
        assert "out of memory; lower" in failure(
            ["train", "--data", str(corpus_path), *SMALL, "--out", "never"], capsys
        )


def test_one_emotion_alone_trains_without_warnings(tmp_path: Path) -> None:
    corpus = small_corpus()
    one = replace(corpus, labels=np.zeros_like(corpus.labels), label_names=["_开心"])
    one.save(tmp_path / "one.npz")
    assert main(["train", "--data", str(tmp_path / "one.npz"), *SMALL, "epochs=1", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test"]["accuracy"] == 1


def test_predict_may_be_run_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    conversation(tmp_path / "talk")
    for _ in range(3):
        assert main(["predict", str(finished), "talk.npz"]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {f"talk.timeline{n}.png" for n in ("", "-2", "-3")}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_json_in_any_unicode_and_names_in_capitals(finished: Path, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "TALK.JSON").write_bytes(
        json.dumps(conversation(tmp_path / "talk"), ensure_ascii=False).encode(encoding)
    )
    assert main(["predict", str(finished), str(tmp_path / "TALK.JSON"), "--out", str(tmp_path / "SAID.CSV")]) == 0
    assert (tmp_path / "SAID.CSV").read_text().startswith("utterance,")


@pytest.mark.skipif(sys.platform != "linux", reason="file names as bytes")
@pytest.mark.parametrize("name", [pytest.param("样本é".encode(), marks=pytest.mark.full), b"caf\xe9"], ids=ascii)
def test_paths_outside_ascii_in_a_locale_without_them(corpus_path: Path, tmp_path: Path, name: bytes) -> None:
    """Python's own UTF-8 mode is off, so that a name is bytes that the locale cannot read."""
    data = os.fsencode(tmp_path) + b"/" + name + b".npz"
    shutil.copy(corpus_path, data)
    program = (
        "import sys; from merc_model.cli import main; data, *small = sys.argv[1:];"
        "print([main(['train', '--data', data, *small, 'epochs=1']), main(['evaluate', 'runs/' + data[:-4]]),"
        " main(['train', '--data', data, *small, 'epochs=1', '--resume'])])"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = [sys.executable, "-c", program, name + b".npz", *SMALL]
    result = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert result.stdout.splitlines()[-1:] == [b"[0, 0, 0]"], result.stderr
    source = json.loads((tmp_path / "runs" / os.fsdecode(name) / "config.json").read_text("utf-8"))["corpus"]["source"]
    assert os.fsencode(source) == data

"""The run on a GPU, as far as it needs none."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import contrastive_peers, gpu
from benchmarks.cell import Cell
from tests.gpu import __main__ as gpu_tests
from tests.gpu.conftest import of_share


def test_what_a_gpu_run_needs_is_named_first(monkeypatch, capsys):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "pybind11" else object())
    monkeypatch.setattr(gpu.sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "has no pybind11" in capsys.readouterr().err


def test_the_gpu_run_goes_on_past_a_failed_part(tmp_path: Path):
    with (tmp_path / "log").open("w") as log:
        python = gpu.sys.executable
        failed = gpu.run(gpu.Part("a", [python, "-c", "print('why'); raise SystemExit(3)"], 60), 60, log)
        slow = gpu.run(gpu.Part("b", [python, "-c", "import time; time.sleep(60)"], 0.5), 60, log)
        late = gpu.run(gpu.Part("c", [python, "-c", ""], 60, reserve=100), 60, log)
        missing = gpu.run(gpu.Part("d", ["no-such-program"], 60), 60, log)
        passed = gpu.run(gpu.Part("e", [python, "-c", "print('fine')"], 60), 60, log)
    outcomes = [failed, slow, late, missing, passed]
    assert [o.status for o in outcomes] == ["failed", "out of time", "out of time", "missing", "passed"]
    assert slow.seconds < 10
    assert (failed.last_line, passed.last_line) == ("why", "fine")
    assert "why" in gpu.summary(outcomes)


def test_the_gpu_run_fits_nine_minutes():
    stages = gpu.stages(Path())
    assert {part.name for stage in stages for part in stage} >= {
        "build",
        "tests",
        "benchmarks",
        "memcheck",
        "racecheck",
    }
    for stage, behind in itertools.pairwise(stages):
        assert min(part.reserve for part in stage) > max(part.reserve for part in behind)


def test_each_gpu_test_has_one_process():
    def item(**parameters):
        return SimpleNamespace(callspec=SimpleNamespace(params=parameters))

    items = [item(backend=name, rows=rows) for rows in range(11) for name in ("cuda", "triton", "torch")]
    items += [item(rows=3), SimpleNamespace()]  # these have no backend
    shares = [of_share(items, name) for name in gpu_tests.tasks() if name != "small case"]
    assert sorted(map(id, itertools.chain(*shares))) == sorted(map(id, items))
    for share in shares[:2]:
        assert len({test.callspec.params["backend"] for test in share[:11]}) == 1


def test_the_gpu_tests_say_how_they_went(monkeypatch, capsys):
    program = """if True:
        import os
        print("2 failed, 3 passed, 1 skipped in 0.1s")
        raise SystemExit("triton" in os.environ["MERC_GPU_TESTS"])
    """
    monkeypatch.setattr(gpu_tests, "tasks", lambda: {name: ["-c", program] for name in ("cuda 1/1", "triton 1/1")})
    assert gpu_tests.main() == 1
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "4 failed, 6 passed, 2 skipped, in trouble: triton 1/1"


def test_products_in_tf32_are_measured_for_float32_alone():
    """Of those that make their products as PyTorch's settings say."""
    there = {p.name: p for p in contrastive_peers.peers("cuda") if p.loss}
    tf32 = {name for name in there if name.endswith(", tf32")}
    assert tf32 >= {"eager, tf32", "merc:torch, tf32"}
    for name in tf32:
        cells = [
            Cell("focal_contrastive", {"rows": 8, "width": 8}, dtype, "focal") for dtype in ("float32", "bfloat16")
        ]
        assert [there[name].takes(cell) for cell in cells] == [True, False]

"""The run on a GPU, as far as it needs none."""

import itertools
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import contrastive_peers, gpu, process
from benchmarks.cell import Cell
from tests.gpu import __main__ as gpu_tests
from tests.gpu.conftest import kind_of, of_share
from tests.gpu.operators import FUSED, OPERATORS


def test_what_a_gpu_run_needs_is_named_first(monkeypatch, capsys):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "pytest" else object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu.sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "has no pytest" in capsys.readouterr().err


def test_the_gpu_run_goes_on_past_a_failed_part(tmp_path: Path):
    def step(name, program, seconds=60.0, **others):
        return gpu.Step(name, [gpu.PYTHON, "-c", program], seconds, **others)

    steps = [step("a", "print('why'); raise SystemExit(3)"), step("b", "import time; time.sleep(60)", 0.5)]
    steps += [step("c", "", reserve=100), gpu.Step("d", ["no-such-program"], 60), step("e", "print('{minutes}')")]
    with (tmp_path / "log").open("w") as log:
        outcomes = [gpu.run(each, 80, log) for each in steps]
    failed, slow, *_, passed = outcomes
    assert [o.status for o in outcomes] == ["failed", "out of time", "out of time", "missing", "passed"]
    assert slow.seconds < 10
    assert (failed.last_line, passed.last_line) == ("why", "0.67")
    assert "why" in gpu.summary(outcomes)
    assert "[a] why" in (tmp_path / "log").read_text()


def test_the_gpu_run_fits_nine_minutes():
    for part in (1, 2):
        for stage, behind in itertools.pairwise(gpu.stages(Path(), part)):
            assert min(step.reserve for step in stage) >= max(step.reserve for step in behind)


def test_the_gpu_run_tells_most_first():
    first, second = ([[step.name for step in stage] for stage in gpu.stages(Path(), part)] for part in (1, 2))
    assert first[:3] == [["build", "ceilings"], ["backends"], ["correctness"]]
    assert first[3:9] == [*([f"goals {name}"] for name in ("cuda", "triton", "merc", "eager")), ["tiles"], ["ncu"]]
    assert first[9:] == [[f"{tool} {operator}" for tool in gpu.SANITIZERS for operator in OPERATORS]]
    assert second == [["build"], ["backends"], ["tests"], ["benchmarks"]]


def test_the_build_is_for_the_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert gpu.this_architecture() == {"TORCH_CUDA_ARCH_LIST": "9.0"}
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX")
    assert gpu.this_architecture() == {}


def test_an_interrupted_gpu_run_leaves_nothing_running(monkeypatch, tmp_path):
    slow = gpu.Step("slow", [gpu.PYTHON, "-c", "import time; time.sleep(60)"], 60)
    monkeypatch.setattr(gpu, "lacking", lambda: None)
    monkeypatch.setattr(gpu, "stages", lambda *of: [[slow, slow]])
    monkeypatch.setattr(gpu.sys, "argv", ["gpu", "--results", str(tmp_path)])
    threading.Timer(1.0, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(SystemExit) as ended:
            gpu.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert time.monotonic() - started < 30
    assert not process.running


def test_each_gpu_test_has_one_process():
    def item(name, **parameters):
        return SimpleNamespace(name=f"{name}[some]", callspec=SimpleNamespace(params=parameters))

    names = ("test_contrastive_sizes", "test_divergence")
    items = [item(name, backend=backend) for _ in range(7) for name in names for backend in FUSED]
    items += [item("test_the_same_bits", loss=loss, operator=operator) for loss in FUSED for operator in OPERATORS]
    items += [item("test_of_none", rows=3), SimpleNamespace(name="test_of_none")]
    shares = [of_share(items, name) for name in gpu_tests.tasks()]
    assert sorted(map(id, itertools.chain(*shares))) == sorted(map(id, items))
    assert all(shares)
    assert len({tuple(kind_of(test)) for test in shares[0]}) == 1


def test_the_gpu_tests_say_how_they_went(monkeypatch, capsys):
    program = """if True:
        import os
        print("2 failed, 3 passed, 1 skipped in 0.1s")
        raise SystemExit("triton" in os.environ["MERC_GPU_TESTS"])
    """
    monkeypatch.setattr(gpu_tests.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_tests, "PYTEST", ["-c", program])
    monkeypatch.setattr(gpu_tests, "tasks", lambda: ["cuda 1/1", "triton 1/1"])
    assert gpu_tests.main() == 1
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "4 failed, 6 passed, 2 skipped; in trouble: triton 1/1"


def test_a_gpu_test_that_hangs_is_ended(monkeypatch, capsys):
    monkeypatch.setattr(gpu_tests.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_tests, "PYTEST", ["-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(gpu_tests, "SECONDS", 0.5)
    monkeypatch.setattr(gpu_tests, "tasks", lambda: ["cuda 1/1"])
    assert gpu_tests.main() == 1
    assert "in trouble: cuda 1/1" in capsys.readouterr().out


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

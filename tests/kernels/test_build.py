"""When setup.py compiles the CUDA sources."""

from pathlib import Path

import pytest
import setuptools
import torch

from merc_kernels._shared.default import covers

SETUP = Path(__file__).parents[2] / "setup.py"
pytest.importorskip("packaging")


@pytest.fixture
def build(monkeypatch, tmp_path):
    """What setup.py defines, on a machine with an nvcc of CUDA 13.0 and a torch with CUDA 13.2."""
    namespace = {"__name__": "setup"}
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("CXX", "no-compiler-at-all")
    monkeypatch.setenv("PATH", str(tmp_path))
    exec(compile(SETUP.read_text(), SETUP, "exec"), namespace)
    for name in ("CUDA_PATH", "MERC_CUDA", "MERC_FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    for folder in ("bin", "include"):
        (tmp_path / folder).mkdir()
    (tmp_path / "include/cuda_runtime.h").touch()
    nvcc = tmp_path / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    namespace["CUDA_USUALLY"] = str(tmp_path / "nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    return namespace


def test_cuda_is_built_where_nvcc_and_a_torch_with_cuda_are(build, monkeypatch, tmp_path):
    assert build["cuda_toolkit"]() == (tmp_path, "13.0")
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert build["cuda_toolkit"]() == (tmp_path, "13.0")


def test_cuda_is_left_out_without_nvcc_without_cuda_in_torch_or_on_request(build, monkeypatch):
    with monkeypatch.context() as without_nvcc:
        without_nvcc.delenv("CUDA_HOME")
        assert build["cuda_toolkit"]() is None
    with monkeypatch.context() as without_cuda:
        without_cuda.setattr(torch.version, "cuda", None)
        assert build["cuda_toolkit"]() is None
    monkeypatch.setenv("MERC_CUDA", "0")
    monkeypatch.setenv("MERC_FORCE_CUDA", "1")
    assert build["cuda_toolkit"]() is None


def test_other_major_versions_do_not_go_together(build, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "9.2")
    assert build["cuda_toolkit"]() is None
    assert "without CUDA: nvcc has CUDA 13.0, and the installed torch 9.2" in capsys.readouterr().err
    monkeypatch.setenv("MERC_FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=r"MERC_FORCE_CUDA=1: nvcc has CUDA 13\.0"):
        build["cuda_toolkit"]()


def test_force_builds_against_a_torch_without_cuda_and_needs_nvcc(build, monkeypatch, tmp_path):
    monkeypatch.setenv("MERC_FORCE_CUDA", "1")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build["cuda_toolkit"]() == (tmp_path, "13.0")
    monkeypatch.delenv("CUDA_HOME")
    with pytest.raises(SystemExit, match="MERC_FORCE_CUDA=1 needs nvcc: put it on PATH, or set CUDA_HOME"):
        build["cuda_toolkit"]()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (13, 0)])
def test_the_architectures_compiled_unasked_serve_every_gpu_from_sm_80_on(build, capability):
    assert covers(build["CUDA_ARCHS"], capability)

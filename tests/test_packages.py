"""Packages: what sdist and wheel hold; they install without git, and leave nothing behind."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("build")
BESIDE = shutil.ignore_patterns(".*", "build", "dist", "runs", "site", "*.egg-info", "__pycache__", "*.so")
STRAY = ("notes.npz", "tests/data/corpus.npz", "tests/test_more.py", "merc_model/corpus.npz", "csrc/focal.o")
SUFFIXES = (".py", ".typed", ".toml", ".html", ".css", ".js")
COMPILED = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

TRIED = """
import importlib, json, sysconfig, torch, merc_kernels
from pathlib import Path
from merc_kernels._shared import backends
from merc_model import cli
x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
y = torch.arange(40) % 5
def values(backend):
    loss = merc_kernels.focal_contrastive_loss(x, y, backend=backend) + merc_kernels.kd_divergence(
        x, x.flip(0), backend=backend)
    return loss, torch.autograd.grad(loss, x)[0]
states, truth = merc_kernels.backends(), values("reference")
for backend in ("cpu", "torch", None):
    if states.get(backend, "on") == "on":
        torch.testing.assert_close(values(backend), truth)
assert cli.main(["info"]) == 0
spoiled = Path(merc_kernels.__file__).with_name("_C" + sysconfig.get_config_var("EXT_SUFFIX"))
if not spoiled.exists():
    spoiled.write_bytes(b"of another torch")
    importlib.invalidate_caches()
    states["spoiled"] = importlib.reload(backends).backends()["cpu"]
    spoiled.unlink()
print(json.dumps({"file": merc_kernels.__file__, "states": states}))
"""


def run(*command, cwd=None, **environment):
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "check": False}
    ended = subprocess.run(command, cwd=cwd, env=os.environ | environment, **both)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def bare(folder):
    """No compiler, and no git."""
    return {"PATH": str(folder), "CXX": "no-compiler", "CC": "no-compiler"}


@pytest.fixture(scope="session")
def packages(once):
    """An sdist, and a wheel made of it where there is neither a compiler nor git."""

    def make(folder):
        source = folder / "a checkout"
        shutil.copytree(ROOT, source, ignore=BESIDE)
        for name in STRAY:
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).touch()
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, **bare(folder))

    return once("packages", make)


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def of_the_packages():
    """The files of this checkout that are installed."""
    return {
        str(path.relative_to(ROOT))
        for package in ("merc_kernels", "merc_model")
        for path in (ROOT / package).rglob("*")
        if path.suffix in SUFFIXES
    }


def test_the_sdist_holds_what_an_installation_needs_and_nothing_else(packages):
    (path,) = packages.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in (m.name for m in archive if m.isfile()) if ".egg-info/" not in name}
    sources = {f"csrc/{path}" for path in names(ROOT / "csrc")}
    project = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}
    assert held == of_the_packages() | sources | project


def test_the_wheel_holds_the_packages_alone_and_without_a_compiler_is_one_for_every_python(packages):
    (path,) = packages.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == of_the_packages()


@pytest.fixture
def environment(tmp_path):
    """A fresh environment with the packages of this one, merc-kdc excepted, in a path with spaces."""
    folder = tmp_path / "an environment"
    venv.create(folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "present.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def pip(environment, *command, **variables):
    return run(sys.executable, "-m", "pip", "--python", environment / "bin/python", *command, **variables)


def tried(environment):
    """The backends, and what ``cpu`` says of an extension that does not load; `merc info` says them too."""
    out = run(environment / "bin/python", "-c", TRIED, cwd=environment)
    told = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert Path(told["file"]).is_relative_to(environment)
    assert told["states"]["cpu"] in out.replace("\n", " ")
    return told["states"]


def unpacked(packages, folder):
    (path,) = packages.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / path.name.removesuffix(".tar.gz")


def test_an_installation_without_a_compiler_works_says_so_and_goes_without_a_trace(packages, environment, tmp_path):
    before = names(environment)
    (wheel,) = packages.glob("*.whl")
    pip(environment, "install", "--no-deps", "--no-index", wheel, **bare(tmp_path))
    states = tried(environment)
    assert states["cpu"].startswith("off: the compiled extension is missing")
    assert "install with a C++ compiler and pip's --no-build-isolation" in states["cpu"]
    assert states["torch"] == states["reference"] == "on"
    assert states["spoiled"].startswith("off: the compiled extension is here, but it does not load beside PyTorch")
    assert states["spoiled"].endswith("install again with a C++ compiler and pip's --no-build-isolation")
    pip(environment, "uninstall", "--yes", "merc-kdc")
    assert names(environment) == before


@pytest.mark.full
@pytest.mark.skipif(COMPILED is None, reason="no C++ compiler")
def test_the_sdist_installs_with_a_compiler_from_a_path_with_spaces(packages, environment, tmp_path):
    before = names(environment)
    source = unpacked(packages, tmp_path / "with spaces")
    pip(environment, "install", "--no-deps", "--no-index", "--no-build-isolation", source, MERC_CUDA="0")
    assert tried(environment)["cpu"] == "on"
    pip(environment, "uninstall", "--yes", "merc-kdc")
    assert names(environment) == before


@pytest.mark.full
def test_a_build_in_isolation_has_no_torch_and_says_so(packages, environment, tmp_path):
    source = unpacked(packages, tmp_path / "with spaces")
    try:
        pip(environment, "download", "--no-deps", "--dest", tmp_path, "setuptools>=77")
    except AssertionError as error:
        pytest.skip(f"no package index: {str(error).strip().splitlines()[-1]}")
    told = pip(environment, "install", "--verbose", "--no-deps", source)
    assert "building without compiled kernels: " in told
    assert tried(environment)["cpu"].startswith("off: the compiled extension is missing")

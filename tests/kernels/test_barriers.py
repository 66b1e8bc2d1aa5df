"""The CUDA kernels have the barriers that they need: ThreadSanitizer watches their threads on the CPU (fibers.h)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.conftest import ROOT, _compile_on_host

OPTIONS = "ignore_noninstrumented_modules=1:symbolize=0:halt_on_error=1:exitcode=66"


@pytest.fixture(scope="module")
def watched(once):
    """What comes of the kernels, whole and without some of their barriers: (name, race, 0 or another exit code)."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    command = [compiler, "-print-file-name=libtsan.so"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip(f"{compiler} has no ThreadSanitizer")
    flags = ("-fsanitize=thread", "-O1", "-g1")
    folder = once("cuda_watched", lambda folder: _compile_on_host(compiler, folder, *flags))

    def run(*places: int) -> list[tuple[str, str]]:
        program = [sys.executable, "-m", "tests.kernels.barriers", str(folder / "on_host.so"), *map(str, places)]
        environment = os.environ | {"LD_PRELOAD": library, "TSAN_OPTIONS": OPTIONS}
        ran = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if "unexpected memory mapping" in ran.stderr:
            pytest.skip("this kernel lays out memory as ThreadSanitizer does not know it")
        assert ran.returncode == 0, ran.stderr
        lines = [line.split() for line in ran.stdout.splitlines()]
        assert lines[0] == ["none", "0"], ran.stderr
        return [(name, what) for name, what in lines[1:]]

    return run


@pytest.mark.full  # and of make archs
def test_no_barrier_is_missing_and_one_that_is_left_out_is_missed(watched):
    (_, found), *_ = watched(1)  # a tile of logits is read once all of it is there
    assert found == "race"


@pytest.mark.full
def test_barriers_of_each_kind_are_missed(watched):
    missed = {name.partition(":")[0] for name, what in watched() if what == "race"}
    assert missed >= {"narrow.cuh", "reduce.cuh", "tile_product.cuh"}

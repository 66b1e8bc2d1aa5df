"""What all tests share."""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests import cores

HERE = Path(__file__).parent
ORDER = ("kernels", "gpu", "model", "benchmarks")  # what breaks first is seen first


def pytest_configure():
    if cores.WORKERS > 1:  # so that they do not fight for the cores, nor the processes that they start
        torch.set_num_threads(cores.of_a_worker())
        os.environ["OMP_NUM_THREADS"] = str(cores.of_a_worker())


def pytest_collection_modifyitems(items):
    def place(item):
        folder = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
        return ORDER.index(folder) if folder in ORDER else len(ORDER)

    items.sort(key=place)


def pytest_collection_finish():
    gc.freeze()  # torch and the tests stay: no collection need look at them


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def once(request, tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``once(name, make)``: the folder that ``make`` filled, in one of all workers; the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if hasattr(request.config, "workerinput") else own

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made

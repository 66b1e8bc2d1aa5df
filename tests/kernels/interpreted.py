"""Tests in processes of their own, in which Triton interprets its kernels: it decides when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cores

SHARE = "MERC_TEST_SHARE"  # I/N: every N-th of the tests, from the I-th on
ROOT = Path(__file__).parents[2]


def shares() -> list:
    """What is interpreted at a time: a marker, and a share of the tests that have it; in make test one a worker."""
    count = min(cores.WORKERS, 4)
    full = pytest.param("full", "1/1", marks=pytest.mark.full)
    return [*(("not full", f"{index + 1}/{count}") for index in range(count)), full]


def run(tests: list, marker: str, share: str) -> None:
    """Run a share of these files' tests; they pass, and there are some."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marker, *map(str, tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1", SHARE: share}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kept(items: list, share: str) -> list:
    """The tests of a share."""
    index, count = map(int, share.split("/"))
    return items[index - 1 :: count]

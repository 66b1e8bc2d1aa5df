"""The GPU tests, in several processes: kernels compile side by side, and one that ruins its process, as an illegal
access does, ruins the tests of no other backend.

python -m tests.gpu
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTEST = ["-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", "--maxfail=20"]
SUMMARY = re.compile(r"\b(\d+) (passed|failed|error|skipped)")
MOST = 8  # processes of the backend that compiles as it goes


def tasks() -> dict[str, list[str]]:
    """Name → arguments of python. A name like ``triton 2/8`` says which tests it runs (conftest.py)."""
    compiling = max(1, min(MOST, (os.cpu_count() or 1) // 2))
    names = ["cuda 1/1", "torch 1/1", *(f"triton {i + 1}/{compiling}" for i in range(compiling))]
    # Its kernels are compiled here, where compute-sanitizer does not watch.
    return dict.fromkeys(names, PYTEST) | {"small case": ["-m", "tests.gpu.small_case"]}


def run(name: str, arguments: list[str], threads: int) -> tuple[int, Counter[str]]:
    """Run one, showing its lines as they come; its exit code, and how many tests passed, failed, were skipped."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"MERC_GPU_TESTS": name, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    last = ""
    with process.stdout as lines:
        for line in lines:
            print(f"[{name}] {line}", end="", flush=True)
            last = line
    return process.wait(), Counter({what: int(count) for count, what in SUMMARY.findall(last)})


def main() -> int:
    """Run all; 0 where each passed."""
    todo = tasks()
    threads = max(1, (os.cpu_count() or 1) // len(todo))
    with ThreadPoolExecutor(len(todo)) as pool:
        codes, counts = zip(*pool.map(run, todo, todo.values(), itertools.repeat(threads)), strict=True)
    total = sum(counts, Counter())
    bad = [f"in trouble: {name}" for name, code in zip(todo, codes, strict=True) if code]
    print(", ".join([f"{count} {what}" for what, count in sorted(total.items())] + bad))
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())

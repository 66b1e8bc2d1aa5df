"""The GPU tests, in several processes: kernels compile side by side, and one that ruins its process, as an illegal
access does, or hangs, takes the tests of no other backend or operator along.

python -m tests.gpu
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PYTEST = ["-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", "--maxfail=20"]
PYTEST += ["-o", "faulthandler_timeout=40"]  # says where it hangs
SUMMARY = re.compile(r"\b(\d+) (passed|failed|error|skipped)")
SECONDS = 105  # after which a process is killed
COMPILING = {"focal_contrastive": 3, "kd_divergence": 1}  # shares of Triton's processes: it compiles as it goes


def tasks() -> list[str]:
    """Which tests run together, as conftest.py reads it: ``triton kd_divergence 2/3``."""
    some = max(1, min(3, (os.cpu_count() or 1) // 6))
    counts = {("triton", operator): some * share for operator, share in COMPILING.items()}
    kinds = itertools.product(("cuda", "torch", "triton"), COMPILING)
    return [f"{' '.join(kind)} {i + 1}/{n}" for kind in kinds for n in [counts.get(kind, 1)] for i in range(n)]


def run(name: str, threads: int) -> tuple[int, Counter[str]]:
    """Run one, showing its lines as they come; its exit code, and how many tests passed, failed, were skipped."""
    process = subprocess.Popen(
        [sys.executable, *PYTEST],
        cwd=ROOT,
        env=os.environ | {"MERC_GPU_TESTS": name, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    watchdog = threading.Timer(SECONDS, process.kill)
    watchdog.start()
    assert process.stdout is not None
    last = ""
    with process.stdout as lines:
        for line in lines:
            sys.stdout.write(f"[{name}] {line.rstrip()}\n")  # print writes the end of a line apart
            sys.stdout.flush()
            last = line
    watchdog.cancel()
    return process.wait(), Counter({what: int(count) for count, what in SUMMARY.findall(last)})


def main() -> int:
    """Run all; 0 where each passed."""
    if not torch.cuda.is_available():
        print("the GPU tests need a GPU, and PyTorch finds none", file=sys.stderr)
        return 2
    todo = tasks()
    threads = max(1, (os.cpu_count() or 1) // len(todo))
    with ThreadPoolExecutor(len(todo)) as pool:
        codes, counts = zip(*pool.map(run, todo, itertools.repeat(threads)), strict=True)
    total = sum(counts, Counter())
    bad = [name for name, code in zip(todo, codes, strict=True) if code]
    counted = ", ".join(f"{count} {what}" for what, count in sorted(total.items()))
    print("; in trouble: ".join([counted, ", ".join(bad)] if bad else [counted]))
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())

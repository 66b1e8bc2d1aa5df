"""The GPU tests, in several processes: kernels compile side by side, and one that ruins its process, as an illegal
access does, or hangs, takes the tests of no other backend or operator along.

python -m tests.gpu
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks import process
from tests.gpu.operators import FUSED, OPERATORS

PYTEST = ["-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", "--maxfail=20"]
PYTEST += ["-o", "faulthandler_timeout=40"]  # says where it hangs
SUMMARY = re.compile(r"\b(\d+) (passed|failed|error|skipped)")
SECONDS = 105  # after which a process is killed
COMPILING = {"focal_contrastive": 3, "kd_divergence": 1}  # shares of Triton's processes: it compiles as it goes


def tasks() -> list[str]:
    """Which tests run together, as conftest.py reads it: ``triton kd_divergence 2/3``."""
    some = max(1, min(3, (os.cpu_count() or 1) // 6))
    counts = {("triton", operator): some * share for operator, share in COMPILING.items()}
    kinds = itertools.product(FUSED, OPERATORS)
    return [f"{' '.join(kind)} {i + 1}/{n}" for kind in kinds for n in [counts.get(kind, 1)] for i in range(n)]


def main() -> int:
    """Run all; 0 where each passed."""
    if not torch.cuda.is_available():
        print("the GPU tests need a GPU, and PyTorch finds none", file=sys.stderr)
        return 2
    todo = tasks()
    threads = str(max(1, (os.cpu_count() or 1) // len(todo)))

    def run(name: str) -> process.Outcome:
        environment = {"MERC_GPU_TESTS": name, "OMP_NUM_THREADS": threads}
        return process.run(name, [sys.executable, *PYTEST], SECONDS, environment=environment, group=None)

    with ThreadPoolExecutor(len(todo)) as pool:
        outcomes = list(pool.map(run, todo))
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update({what: int(count) for count, what in SUMMARY.findall(outcome.last_line)})
    bad = [outcome.name for outcome in outcomes if outcome.status != "passed"]
    counted = ", ".join(f"{count} {what}" for what, count in sorted(total.items()))
    print("; in trouble: ".join([counted, ", ".join(bad)] if bad else [counted]))
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())

"""Twelve cases that say whether the fused kernels are right: two operators, two backends, three sizes (``make gpu``).

    python -m tests.gpu.cases --results FOLDER [--device cuda] [--only BACKEND OPERATOR]

A process for each backend and operator, side by side: one whose kernels break it costs no other its cases. Each writes
what came of it into correctness.json after each of its cases: the relative error of value and gradient against float64.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import process
from benchmarks.harness import relative_error
from benchmarks.results_file import environment, merge, prepare
from merc_kernels import focal_contrastive_loss, kd_divergence
from tests.gpu.operators import OPERATORS, call, why_not

BACKENDS = ("cuda", "triton")  # those with kernels of their own
SIZES = {
    "focal_contrastive": ((257, 96, torch.float32), (1030, 256, torch.bfloat16), (513, 768, torch.bfloat16)),
    "kd_divergence": ((1000, 7, torch.float32), (131, 1030, torch.bfloat16), (37, 32001, torch.float32)),
}
LIMIT = {torch.float32: 1e-3, torch.bfloat16: 2e-2}  # those of the benchmarks
SECONDS = 55  # of a process


def tensors(operator: str, rows: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """What requires a gradient, and the labels or the teacher; drawn on the CPU, the same everywhere."""
    made = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=made).to(device, dtype).requires_grad_()
    if operator == "kd_divergence":
        return x, torch.randn(rows, width, generator=made).to(device, dtype)
    labels = torch.randint(5, (rows,), generator=made)
    labels[::7] = -100
    return x, labels.to(device)


def checked(operator: str, backend: str, rows: int, width: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The numbers of one case."""
    x, other = tensors(operator, rows, width, dtype, device)
    loss = focal_contrastive_loss if operator == "focal_contrastive" else kd_divergence
    exact = x.detach().cpu().double().requires_grad_()
    other64 = other.cpu() if operator == "focal_contrastive" else other.cpu().double()
    value = loss(exact, other64, backend="reference")
    truth = (float(value.detach()), torch.autograd.grad(value, exact)[0], rows)
    row: dict[str, Any] = {"rows": rows, "width": width, "dtype": str(dtype).removeprefix("torch.")}
    try:
        ours = call(operator, backend)(x, other)
        gradient = torch.autograd.grad(ours, x)[0]
        error = relative_error((float(ours.detach()), gradient.cpu()), truth)
    except Exception as raised:  # whatever a kernel raises is the case's result
        return row | {"status": "failed", "reason": f"{type(raised).__name__}: {' '.join(str(raised).split())[:300]}"}
    return row | {"status": "passed" if error <= LIMIT[dtype] else "wrong", "error": error}


def one(backend: str, operator: str, device: str, folder: Path) -> int:
    """The cases of one backend and operator."""
    rows: list[dict[str, Any]] = []
    if (reason := why_not(backend)) is not None:
        rows.append({"status": "absent", "reason": reason})
    else:
        for size in SIZES[operator]:
            rows.append(checked(operator, backend, *size, device))
            print(rows[-1], flush=True)
            merge(folder / "correctness.json", f"{backend} {operator}", rows)
    merge(folder / "correctness.json", f"{backend} {operator}", rows)
    counted = sum(row["status"] == "passed" for row in rows)
    print(f"{counted} of {len(SIZES[operator])} passed")
    return int(counted < len(SIZES[operator]))


def main() -> int:
    """All, or one; 0 where each passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", nargs=2, metavar=("BACKEND", "OPERATOR"))
    options = parser.parse_args()
    prepare(options.results)
    if options.only:
        return one(*options.only, options.device, options.results)
    merge(options.results / "correctness.json", "environment", environment())
    pairs = [(backend, operator) for backend in BACKENDS for operator in OPERATORS]
    base = [sys.executable, "-m", "tests.gpu.cases", "--device", options.device, "--results", str(options.results)]

    def run(pair: tuple[str, str]) -> process.Outcome:
        return process.run(" ".join(pair), [*base, "--only", *pair], SECONDS, group=None)

    with ThreadPoolExecutor(len(pairs)) as pool:
        outcomes = list(pool.map(run, pairs))
    print("; ".join(f"{each.name}: {each.status}, {each.last_line[:60]}" for each in outcomes))
    return int(any(each.status != "passed" for each in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())

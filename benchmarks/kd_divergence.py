"""kd_divergence on the CPU, forward and backward, beside eager PyTorch, torch.compile of it, and the floor.

    python -m benchmarks.kd_divergence

The floor is `torch.add(student, teacher)`: it reads both and writes one fresh tensor. The result,
benchmarks/results/kd_divergence-cpu.json, has for each size and provider the median and the 20 and 80 % quantiles in
milliseconds, the error of value and gradient against float64 in the same run, and the peak memory beyond inputs and
the returned gradient.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.environment import RESULTS, environment
from benchmarks.timing import interleaved, peak_extra_bytes, peak_in_a_fresh_process
from merc_kernels import kd_divergence, reference

TEMPERATURE = 2.0
SIZES = {(2048, 32000): (9, 1), (4096, 7): (40, 20), (512, 6): (40, 60)}  # (N, C): rounds, calls a round
LARGEST_ERROR = 1e-4


def eager(student: Tensor, teacher: Tensor) -> Tensor:
    """What is written everywhere."""
    log_q, p = F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1)
    return F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2


def ours(student: Tensor, teacher: Tensor) -> Tensor:
    """The backend that None chooses."""
    return kd_divergence(student, teacher, temperature=TEMPERATURE)


def providers() -> dict[str, Any]:
    """Name -> loss of student and teacher."""
    torch._dynamo.reset()
    return {"ours": ours, "eager": eager, "torch.compile": torch.compile(eager, dynamic=False)}


def step(loss: Any, student: Tensor, teacher: Tensor) -> Tensor:
    """Forward and backward; the gradient."""
    student.grad = None
    loss(student, teacher).backward()
    assert student.grad is not None
    return student.grad


def inputs(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Student and teacher logits of standard deviation 3."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(rows, classes, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


def error(loss: Any, rows: int, classes: int) -> float:
    """Relative error of value and gradient (the larger) against the reference in float64, on 256 rows at most."""
    student, teacher = inputs(min(rows, 256), classes)
    exact_student = student.detach().double().requires_grad_()
    exact = reference.kd_divergence(exact_student, teacher.double(), temperature=TEMPERATURE)
    truth = torch.autograd.grad(exact, exact_student)[0]
    value = loss(student, teacher).item()
    gradient = step(loss, student, teacher).double()
    return max(abs(value / exact.item() - 1), float((gradient - truth).norm() / truth.norm()))


def measure(rows: int, classes: int) -> dict[str, Any]:
    """One size: every provider, and the floor."""
    rounds, inner = SIZES[rows, classes]
    student, teacher = inputs(rows, classes)
    losses = providers()
    errors = {name: error(loss, rows, classes) for name, loss in losses.items()}
    calls = {name: lambda loss=loss: step(loss, student, teacher) for name, loss in losses.items()}
    calls["floor"] = lambda: torch.add(student.detach(), teacher)
    times = interleaved(calls, rounds, inner)
    floor = times.pop("floor")
    row: dict[str, Any] = {"subject": "kd_divergence", "dtype": "float32", "rows": rows, "classes": classes}
    row |= {"pass": "both", "floor_ms": floor, "providers": {}}
    for name, values in times.items():
        wrong = errors[name] > LARGEST_ERROR
        row["providers"][name] = {"error": errors[name]} if wrong else {**values, "error": errors[name]}
        if not wrong:
            row["providers"][name]["share_of_floor"] = floor["median"] / values["median"]
        row["providers"][name]["peak_extra_bytes"] = peak_in_a_fresh_process(
            "benchmarks.kd_divergence", name, str(rows), str(classes)
        )
    return row


def peak(name: str, rows: int, classes: int) -> int:
    """Peak memory of one step beyond inputs and the returned gradient."""
    student, teacher = inputs(rows, classes)
    loss = providers()[name]
    step(loss, *inputs(8, 8))
    if name == "torch.compile":  # compiling is no part of a step
        step(loss, student, teacher)
        student.grad = None
    return max(0, peak_extra_bytes(lambda: step(loss, student, teacher)) - student.numel() * 4)


def main() -> None:
    """Measure every size and write the result."""
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        return
    rows = []
    for size in SIZES:
        rows.append(measure(*size))
        print(f"{size[0]} x {size[1]}: floor {rows[-1]['floor_ms']['median']:.3f} ms")
        for name, values in rows[-1]["providers"].items():
            extra = values["peak_extra_bytes"] / 2**20
            median = values.get("median", float("nan"))
            print(f"  {name:14} {median:9.3f} ms, {extra:8.1f} MiB, error {values['error']:.1e}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "kd_divergence-cpu.json"
    path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()

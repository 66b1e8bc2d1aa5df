"""Whole calls under pytest-benchmark, for whoever changes a kernel: its histograms, its comparison with an earlier run.

    python -m pytest benchmarks/calls.py [--benchmark-compare]

One size a subject, forward and backward, every provider in a group. pytest-benchmark times one provider after the
other, so that a slower minute falls on one of them: what is committed comes from ``python -m benchmarks``, which
interleaves them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import focal_contrastive, kd_divergence, training_step
from benchmarks.cell import Cell, Provider, Subject

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOW = ("loop over anchors", "torch.compile")
CASES: list[tuple[Subject, Cell]] = [
    (
        focal_contrastive.SUBJECT,
        Cell("focal_contrastive", {"rows": 200, "width": 256}, formula="focal"),
    ),
    (kd_divergence.SUBJECT, Cell("kd_divergence", {"rows": 512, "classes": 6})),
    (training_step.SUBJECT, Cell("training_step", {"rows": 128})),
]


def _present() -> list[Any]:
    return [
        pytest.param(subject, cell, provider, id=f"{subject.name}-{provider.name}")
        for subject, cell in CASES
        for provider in subject.providers(DEVICE)
        if provider.loss and provider.takes(cell) and provider.name not in SLOW
    ]


@pytest.mark.parametrize(("subject", "cell", "provider"), _present())
def test_call(benchmark: Any, subject: Subject, cell: Cell, provider: Provider) -> None:
    """Forward and backward."""
    benchmark.group = cell.title
    call = subject.problem(cell, provider, DEVICE).call("both")

    def finished() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(finished)

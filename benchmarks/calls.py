"""Whole calls under pytest-benchmark, for whoever changes a kernel: its histograms, its comparison with an earlier run.

    python -m pytest benchmarks/calls.py [--benchmark-compare]

The first quick cell of a subject, forward and backward. pytest-benchmark times one provider after the other, so that a
slower minute falls on one of them: what is committed comes from ``python -m benchmarks``, which interleaves them.
"""

from typing import Any

import pytest
import torch

from benchmarks import focal_contrastive, kd_divergence, training_step
from benchmarks.cell import Cell, Provider, Subject

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SUBJECTS: tuple[Subject, ...] = (focal_contrastive.SUBJECT, kd_divergence.SUBJECT, training_step.SUBJECT)
CASES = [
    pytest.param(subject, cell, provider, id=f"{subject.name}-{provider.name}")
    for subject in SUBJECTS
    for cell in subject.cells("quick", DEVICE)[:1]
    for provider in subject.providers(DEVICE)
    if provider.loss and provider.takes(cell)
]


@pytest.mark.parametrize(("subject", "cell", "provider"), CASES)
def test_call(benchmark: Any, subject: Subject, cell: Cell, provider: Provider) -> None:
    """Forward and backward."""
    benchmark.group = cell.title
    call = subject.problem(cell, provider, DEVICE).call("both")

    def finished() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(finished)

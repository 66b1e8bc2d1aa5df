"""What kd_divergence is measured against: T² KL(softmax(t / T) | softmax(s / T)) a row, averaged over the rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.cell import Provider
from benchmarks.providers import Loss, compiled, optional, ours
from merc_kernels import kd_divergence

TEMPERATURE = 2.0
CHUNK = 1 << 22  # elements of the logits that the chunked form takes at a time


def merc(student: Tensor, teacher: Tensor, formula: str = "", *, backend: str | None) -> Tensor:
    """The operator."""
    return kd_divergence(student, teacher, temperature=TEMPERATURE, backend=backend)


def eager(student: Tensor, teacher: Tensor, formula: str = "") -> Tensor:
    """What is written everywhere."""
    return summed(student, teacher) / len(student)


def summed(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum over the rows."""
    log_q, p = F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1)
    return F.kl_div(log_q, p, reduction="sum") * TEMPERATURE**2


def chunked(student: Tensor, teacher: Tensor, formula: str = "") -> Tensor:
    """Some rows at a time, recomputed in the backward pass: what a careful user would write."""
    step = max(1, CHUNK // student.shape[1])
    total = student.new_zeros(())
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    for s, t in zip(torch.split(student, step), torch.split(teacher, step), strict=True):
        total = total + checkpoint(summed, s, t, **options)
    return total / len(student)


def peers(device: str) -> list[Provider]:
    """Every provider on a device, the absent ones too."""
    return [
        *ours(merc, device),
        Provider("eager", eager),
        Provider("torch.compile", compiled(eager)),
        Provider("chunked", chunked),
        optional("liger-kernel", "liger_kernel.transformers.kl_div", lambda module: _liger(module, device)),
    ]


def _liger(module: Any, device: str) -> Loss:
    if device != "cuda":
        raise ImportError("its kernels run on a GPU only")
    loss = module.LigerKLDIVLoss(reduction="batchmean")

    def call(student: Tensor, teacher: Tensor, formula: str = "") -> Tensor:
        log_q, p = F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1)
        value: Tensor = loss(log_q, p) * TEMPERATURE**2
        return value

    return call

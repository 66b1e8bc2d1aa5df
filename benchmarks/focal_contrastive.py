"""focal_contrastive_loss on the CPU, forward and backward, beside what one would write in PyTorch, and matrix products.

    python -m benchmarks.focal_contrastive

Six classes in IEMOCAP's proportions, D = 256, the similarity form with gamma 2 and a temperature of 0.1. One pass is
2 N² D operations at the rate of `torch.mm` of two 2048² matrices in the same run; the plain algorithm needs three, the
symmetric one two. The result, benchmarks/results/focal_contrastive-cpu.json, has for each size and provider the median
and the 20 and 80 % quantiles in milliseconds, the passes, the error of value and gradient against float64 in the same
run, and the peak memory beyond inputs and the returned gradient.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.environment import RESULTS, environment
from benchmarks.timing import interleaved, peak_extra_bytes, peak_in_a_fresh_process
from merc_kernels import focal_contrastive_loss, reference

WIDTH, TEMPERATURE, GAMMA = 256, 0.1, 2.0
PROPORTIONS = torch.tensor([504.0, 839.0, 1324.0, 933.0, 742.0, 1468.0])
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 6e-3}
SIZES: dict[tuple[int, torch.dtype], tuple[list[str], int, int]] = {  # N, dtype: providers, rounds, calls a round
    (200, torch.float32): (["ours", "eager", "torch.compile", "torch backend"], 40, 20),
    (956, torch.float32): (["ours", "eager", "torch.compile", "torch backend", "loop over anchors"], 9, 1),
    (4096, torch.float32): (["ours", "eager", "torch.compile", "torch backend"], 7, 1),
    (4096, torch.bfloat16): (["ours"], 7, 1),
    (16384, torch.float32): (["ours"], 3, 1),
}


def eager(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The lean N x N form: one product, one masked logsumexp, the factor, one masked row mean."""
    z = F.normalize(embeddings, dim=-1)
    cosine = z @ z.T
    s = cosine / TEMPERATURE
    itself = torch.eye(len(z), dtype=torch.bool)
    lse = s.masked_fill(itself, -torch.inf).logsumexp(-1, keepdim=True)
    positive = ((labels[:, None] == labels) & ~itself).float()
    factor = ((1 - cosine.detach()) / 2).square() * positive
    count = positive.sum(-1)
    rows = (factor * (lse - s)).sum(-1) / count.clamp(min=1)
    return rows.sum() / (count > 0).sum()


def loop_over_anchors(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The shape of MultiEMO's published loss, written from its formula: a Python loop, here with our factor."""
    z = F.normalize(embeddings, dim=-1)
    total, anchors = z.new_zeros(()), 0
    for i in range(len(z)):
        others = torch.arange(len(z)) != i
        cosine = z[others] @ z[i]
        positive = labels[others] == labels[i]
        if positive.any():
            log_p = (cosine / TEMPERATURE).log_softmax(0)[positive]
            factor = ((1 - cosine[positive].detach()) / 2) ** GAMMA
            total = total - (factor * log_p).mean()
            anchors += 1
    return total / anchors


def provider(name: str) -> Any:
    """A loss of embeddings and labels."""
    options = {"temperature": TEMPERATURE, "gamma": GAMMA}
    if name == "torch.compile":
        torch._dynamo.reset()
        return torch.compile(eager, dynamic=False)
    return {
        "ours": functools.partial(focal_contrastive_loss, **options),
        "torch backend": functools.partial(focal_contrastive_loss, **options, backend="torch"),
        "eager": eager,
        "loop over anchors": loop_over_anchors,
    }[name]


def inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Embeddings and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(PROPORTIONS, rows, replacement=True, generator=generator)
    return torch.randn(rows, WIDTH, generator=generator).to(dtype).requires_grad_(), labels


def step(loss: Any, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward; the gradient."""
    embeddings.grad = None
    loss(embeddings, labels).backward()
    assert embeddings.grad is not None
    return embeddings.grad


def error(loss: Any, rows: int, dtype: torch.dtype) -> float:
    """Relative error of value and gradient (the larger) against the reference in float64, on 1024 rows at most."""
    embeddings, labels = inputs(min(rows, 1024), dtype)
    exact = embeddings.detach().double().requires_grad_()
    truth = reference.focal_contrastive_loss(exact, labels, temperature=TEMPERATURE, gamma=GAMMA)
    gradient = torch.autograd.grad(truth, exact)[0]
    value = loss(embeddings, labels).item()
    difference = step(loss, embeddings, labels).double() - gradient
    return max(abs(value / truth.item() - 1), float(difference.norm() / gradient.norm()))


def measure(rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """One size: every provider, and the matrix product."""
    names, rounds, inner = SIZES[rows, dtype]
    embeddings, labels = inputs(rows, dtype)
    losses = {name: provider(name) for name in names}
    errors = {name: error(loss, rows, dtype) for name, loss in losses.items()}
    square = torch.randn(2048, 2048)
    calls: dict[str, Any] = {
        name: functools.partial(step, loss, embeddings, labels)
        for name, loss in losses.items()
        if errors[name] <= LARGEST_ERROR[dtype]
    }
    slow = {name: calls.pop(name) for name in ("loop over anchors",) if name in calls}
    times = interleaved(calls, rounds, inner) | interleaved(slow, 3)
    product = interleaved({"mm": lambda: torch.mm(square, square)}, max(rounds, 5))["mm"]
    pass_ms = product["median"] * rows**2 * WIDTH / 2048**3
    row: dict[str, Any] = {"subject": "focal_contrastive", "dtype": str(dtype).removeprefix("torch."), "rows": rows}
    row |= {"width": WIDTH, "pass": "both", "mm_2048_ms": product, "one_pass_ms": pass_ms, "providers": {}}
    for name in names:
        result: dict[str, Any] = {"error": errors[name]}
        if name in times:
            result |= {**times[name], "passes": times[name]["median"] / pass_ms}
        arguments = (name, str(rows), row["dtype"])
        result["peak_extra_bytes"] = peak_in_a_fresh_process("benchmarks.focal_contrastive", *arguments)
        row["providers"][name] = result
    return row


def peak(name: str, rows: int, dtype: torch.dtype) -> int:
    """Peak memory of one step beyond inputs and the returned gradient."""
    embeddings, labels = inputs(rows, dtype)
    loss = provider(name)
    step(loss, *inputs(64, dtype))
    if name == "torch.compile":  # compiling is no part of a step
        step(loss, embeddings, labels)
        embeddings.grad = None
    returned = embeddings.numel() * embeddings.element_size()
    return max(0, peak_extra_bytes(lambda: step(loss, embeddings, labels)) - returned)


def main() -> None:
    """Measure every size and write the result."""
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], int(sys.argv[3]), getattr(torch, sys.argv[4])))
        return
    rows = []
    for size in SIZES:
        rows.append(measure(*size))
        print(f"N = {size[0]}, {rows[-1]['dtype']}: one pass {rows[-1]['one_pass_ms']:.3f} ms", flush=True)
        for name, values in rows[-1]["providers"].items():
            extra = values["peak_extra_bytes"] / 2**20
            median, passes = values.get("median", float("nan")), values.get("passes", float("nan"))
            line = f"  {name:17} {median:9.3f} ms, {passes:6.2f} passes, {extra:7.1f} MiB, error {values['error']:.1e}"
            print(line, flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "focal_contrastive-cpu.json"
    path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()

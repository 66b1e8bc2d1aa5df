"""What the chip allows, in twenty seconds: the rates that every other time is held against (``make gpu``).

    python -m benchmarks.ceilings --results FOLDER [--device cuda] [--shrink 1]

Writes ceilings.json after each number: a copy, and a read that stays in the L2 cache, in bytes a second; large products
in bfloat16 and tf32, and the product of a strip of W + W' with Z as the Triton backend makes it, in operations a
second; the seconds of a launch. ``--shrink`` divides the sizes, to rehearse on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cell import Call, precision
from benchmarks.results_file import environment, prepare, write
from benchmarks.timing import clock, interleaved, quantiles

SECONDS = 0.5  # of timing one
STRIP = (2048, 65536)  # rows and columns of a strip of 256 MiB in 16 bits


def measured(device: str, shrink: int) -> Iterator[tuple[str, float]]:
    """Name and rate."""

    def rate(amount: float, call: Call) -> float:
        times = interleaved({"it": call}, SECONDS, device)["it"]
        if isinstance(times, Exception):
            raise times
        return amount / (quantiles(times)["median_ms"] / 1e3)

    size = (1 << 28) // shrink
    yield "copy_bytes_per_s", rate(8 * size, copy(size, device))
    cached = torch.zeros((1 << 22) // shrink, device=device).expand(64, -1)  # 16 MiB, read 64 times
    yield "l2_read_bytes_per_s", rate(4 * cached.numel(), lambda: cached.sum(-1))
    side = 8192 // max(1, round(shrink**0.5))
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        with precision("high"):
            yield f"mm_{name}_flop_per_s", rate(2 * side**3, product(left, right))
    rows, columns = (max(16, n // max(1, round(shrink**0.5))) for n in STRIP)
    for width in (256, 768):
        strip = torch.randn(1, rows, columns, device=device, dtype=torch.bfloat16)
        z = torch.randn(1, columns, width, device=device, dtype=torch.bfloat16)
        wide = {"out_dtype": torch.float32} if device == "cuda" else {}
        flop = 2 * rows * columns * width
        yield f"strip_{width}_flop_per_s", rate(flop, lambda s=strip, z=z, w=wide: torch.bmm(s, z, **w))  # type: ignore[misc]
    one = torch.zeros(1, device=device)
    yield "launch_seconds", clock(lambda: one.add_(1), device, 1000)


def copy(size: int, device: str) -> Call:
    """Of float32."""
    source, target = torch.zeros(size, device=device), torch.empty(size, device=device)
    return lambda: target.copy_(source)


def product(left: Tensor, right: Tensor) -> Call:
    """Of two matrices."""
    return lambda: torch.mm(left, right)


def main() -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--shrink", type=int, default=1)
    options = parser.parse_args()
    prepare(options.results)
    found: dict[str, float] = {}
    where = environment()
    for name, rate in measured(options.device, options.shrink):
        found[name] = rate
        write(options.results / "ceilings.json", {"environment": where, "ceilings": found})
        print(f"{name} {rate:.4g}", flush=True)
    print(", ".join(f"{name.partition('_per_s')[0]} {rate:.3g}" for name, rate in found.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

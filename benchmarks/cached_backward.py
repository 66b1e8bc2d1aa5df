"""Peak memory and time of a step against the rows that are encoded at a time (merc_kernels.cached_backward).

Each is measured in a process of its own: the largest resident memory beyond what was there before the step.

python -m benchmarks.cached_backward           prints a table
python -m benchmarks.cached_backward --write   writes results/cached_backward.json as well
"""

import argparse
import multiprocessing
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import resident_peak
from benchmarks.results_file import RESULTS, environment, write
from benchmarks.tables import mebibytes, number
from merc_kernels import FocalContrastiveLoss, cached_backward

FILE = RESULTS / "cached_backward.json"
ROWS, LENGTH, WIDTH, CLASSES = 512, 16, 64, 6  # sequences of 16 vectors of width 64, six labels
CHUNKS = (8, 32, 128, 512)
STEPS = 3


class Encoder(nn.Module):
    """A small transformer, whose activations outweigh its embeddings by far."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, L, D)`` to ``(N, D)``."""
        pooled: Tensor = self.layers(x).mean(1)
        return pooled


def measured(chunk: int | None) -> dict[str, Any]:
    """Of one step: its peak, its time; None encodes all rows at once, as without `cached_backward`."""
    torch.manual_seed(0)
    encoder, criterion = Encoder(), FocalContrastiveLoss()
    inputs, labels = torch.randn(ROWS, LENGTH, WIDTH), torch.arange(ROWS) % CLASSES

    def step() -> Tensor:
        if chunk is not None:
            return cached_backward(encoder, inputs, lambda z: criterion(z, labels), chunk_size=chunk)
        loss: Tensor = criterion(encoder(inputs), labels)
        torch.autograd.backward(loss)
        return loss.detach()

    torch.autograd.backward(encoder(inputs[:8]).sum())  # threads, libraries and .grad are there
    peak, seconds = resident_peak(step), []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"chunk_size": chunk, "peak_extra_bytes": peak, "median_ms": 1000 * sorted(seconds)[STEPS // 2]}


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements in Markdown."""
    lines = ["| `chunk_size` | peak memory of a step | time, ms |", "|---|---|---|"]
    for row in rows:
        size = "all at once, without `cached_backward`" if row["chunk_size"] is None else row["chunk_size"]
        lines.append(f"| {size} | {mebibytes(row['peak_extra_bytes'])} | {number(row['median_ms'])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = []
    for chunk in (*CHUNKS, None):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measured, (chunk,)))
    print(table(rows))
    if options.write:
        sizes = {"rows": ROWS, "length": LENGTH, "width": WIDTH}
        write(FILE, {"environment": environment(), "sizes": sizes, "rows": rows})


if __name__ == "__main__":
    main()

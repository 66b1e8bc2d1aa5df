# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call"
"""Tiles of the Triton kernels of pairs, timed on the goal cells (``make gpu``).

    python -m benchmarks.tile_sweep --results FOLDER [--minutes 2]

Each cell is timed with its own tiles, then with others near them, one kernel at a time: the forward pass for the sums,
the backward pass for the gradient. Candidates are compiled by several processes at once, into Triton's cache; one that
does not compile or does not fit is left out. tiles.json gets all times after each kernel, and the best of each as a
line ``(kernel, dtype, width, architecture): Tile(...)`` for merc_kernels/focal_contrastive/triton/configuration.py.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.results_file import environment, prepare, write
from benchmarks.timing import interleaved, quantiles
from merc_kernels import focal_contrastive_loss

SECONDS = 0.1  # of timing a candidate
MORE = 1.02  # a tile is better where it is faster by that


class Question(NamedTuple):
    """Which tile is asked for, and on how many rows it is timed."""

    kernel: str  # sums, held, matrix
    dtype: str
    width: int
    rows: int

    @property
    def pass_(self) -> str:
        """The pass that is timed."""
        return "forward" if self.kernel == "sums" else "backward"


QUESTIONS = (
    Question("sums", "bfloat16", 256, 16384),
    Question("held", "bfloat16", 256, 16384),
    Question("matrix", "bfloat16", 768, 16384),
    Question("sums", "bfloat16", 768, 16384),
    Question("sums", "float32", 256, 8192),
    Question("matrix", "float32", 256, 8192),
)


def usual(question: Question, architecture: int) -> Any:
    """The tile that the configuration gives."""
    from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
    from merc_kernels.focal_contrastive.triton import configuration

    of_it = getattr(configuration, f"{question.kernel}_tile")
    variant = configuration.Variant.of(FocalContrastiveOptions(), known_temperature=True)
    others = () if question.kernel == "sums" else (False,)
    return of_it(getattr(torch, question.dtype), question.width, variant, *others, architecture)


def candidates(tile: Any, kernel: str) -> list[Any]:
    """The tile itself, then those near it, which differ in few numbers first."""
    widths = (
        (tile.width,)
        if kernel == "held"
        else tuple(w for w in (tile.width // 2, tile.width, 2 * tile.width) if w >= 16)
    )
    near = itertools.product(
        (tile.rows // 2, tile.rows, 2 * tile.rows),
        (tile.columns // 2, tile.columns, 2 * tile.columns),
        widths,
        (2, 4),
        (4, 8),
        (2, 3, 4),
    )
    tiles = [type(tile)(*numbers) for numbers in near]
    tiles = [
        one for one in tiles if 16 <= one.rows <= 256 and 32 <= one.columns <= 128 and one.columns // one.parts >= 16
    ]

    def distance(one: Any) -> int:
        return sum(a != b for a, b in zip(one, tile, strict=True))

    return sorted({*tiles, tile}, key=lambda one: (distance(one), one))


@contextmanager
def given(kernel: str, tile: Any) -> Iterator[None]:
    """Launches take that tile."""
    from merc_kernels.focal_contrastive.triton import launch, source_gradient

    room = launch if kernel == "sums" else source_gradient
    name = f"{kernel}_tile"
    before = getattr(room, name)
    setattr(room, name, lambda *question: tile)
    try:
        yield
    finally:
        setattr(room, name, before)


def problem(question: Question, rows: int, device: str = "cuda") -> tuple[Callable[[], Tensor], Tensor]:
    """The loss, and the embeddings."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(rows, question.width, generator=made).to(device, getattr(torch, question.dtype)).requires_grad_()
    labels = torch.randint(6, (rows,), generator=made).to(device)
    return lambda: focal_contrastive_loss(x, labels, backend="triton"), x


def compile_(question: Question, tile: Any) -> bool:
    """Whether a small call with it runs; its kernel is in Triton's cache afterwards."""
    loss, x = problem(question, 512)
    try:
        with given(question.kernel, tile):
            torch.autograd.grad(loss(), x)
            torch.cuda.synchronize()
    except Exception:  # too much shared memory, too many registers, or a fault of the compiler
        return False
    return True


def timed(question: Question, tile: Any) -> float:
    """Median milliseconds."""
    loss, x = problem(question, question.rows)
    with given(question.kernel, tile):
        value = loss()
        call: Callable[[], Any] = loss
        if question.pass_ == "backward":

            def call() -> Any:
                return torch.autograd.grad(value, x, retain_graph=True)

        times = interleaved({"it": call}, SECONDS, "cuda")["it"]
    if isinstance(times, Exception):
        raise times
    return float(quantiles(times)["median_ms"])


def best_lines(rows: list[dict[str, Any]]) -> list[str]:
    """For each kernel the fastest tile, where it is faster than the one that it has; else that one."""
    lines = []
    for key, group in itertools.groupby(
        rows, lambda row: (row["kernel"], row["dtype"], row["width"], row["architecture"])
    ):
        found = [row for row in group if row["ms"] is not None]
        now = next((row for row in found if row["now"]), None)
        best = min(found, key=lambda row: float(row["ms"]), default=None)
        if best is None:
            continue
        if now is not None and now["ms"] < MORE * best["ms"]:
            best = now
        had = "not measured" if now is None else f"{now['ms']:.3f}"
        lines.append(f"{key!r}: Tile{tuple(best['tile'])},  # {best['ms']:.3f} ms, now {had}")
    return lines


def main() -> int:
    """Sweep, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.0)
    options = parser.parse_args()
    prepare(options.results)
    from merc_kernels.focal_contrastive.triton.configuration import architecture_of

    architecture = architecture_of(torch.device("cuda", torch.cuda.current_device()))
    finish = time.monotonic() + 60 * options.minutes
    rows: list[dict[str, Any]] = []
    where = environment()
    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for number, question in enumerate(QUESTIONS):
            left = (finish - time.monotonic()) / (len(QUESTIONS) - number)
            if left < 5:
                break
            ours = usual(question, architecture)
            tiles = candidates(ours, question.kernel)[: 4 * workers]
            until = time.monotonic() + left
            compiling = {tile: pool.submit(compile_, question, tile) for tile in tiles}
            for tile, fits in compiling.items():
                ms = None
                try:
                    if fits.result(timeout=max(0.1, until - time.monotonic())):
                        ms = timed(question, tile)
                except Exception as error:  # the others go on
                    print(f"{question} {tile}: {type(error).__name__}", flush=True)
                row = {**question._asdict(), "architecture": architecture, "tile": list(tile)}
                rows.append(row | {"now": tile == ours, "ms": ms})
                if time.monotonic() > until:
                    break
            for waiting in compiling.values():
                waiting.cancel()
            best = best_lines(rows)
            write(options.results / "tiles.json", {"environment": where, "best": best, "rows": rows})
            print("\n".join(best[-1:]), flush=True)
    print("; ".join(best_lines(rows)))
    return int(not rows)


if __name__ == "__main__":
    raise SystemExit(main())

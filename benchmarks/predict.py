# Triton ships no types, where it is installed at all:
# mypy: disable-error-code="import-untyped,import-not-found"
"""What the Triton kernels of the goal cells would take on an H100: predicted from their machine code, never measured.

    python -m benchmarks.predict [--write] [WORD ...]       cells whose titles hold all words; --write: the result file

Each call's own code says what it launches, on tensors without memory. Its kernels are compiled ahead of time, their
instructions counted (`benchmarks.sass`), and each unit is taken to work at its full rate: the longest one bounds a
launch. Where a processor holds one program, a product overlaps with what stands between it and its wait alone.
"""

import argparse
import json
import math
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks import sass
from benchmarks.cell import Cell, precision
from benchmarks.focal_contrastive import share_apart
from benchmarks.goals import GOALS, PREDICTED
from benchmarks.results_file import write
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from merc_kernels.focal_contrastive.triton import call as focal_call
from merc_kernels.focal_contrastive.triton import launch as focal
from merc_kernels.focal_contrastive.triton import source_gradient
from merc_kernels.kd_divergence.options import GRADIENT, KDDivergenceOptions
from merc_kernels.kd_divergence.triton import configuration
from merc_kernels.kd_divergence.triton import launch as divergence

CLOCK, PROCESSORS, L2, HBM = 1.7e9, 132, 6.0e12, 3.0e12  # an H100: Hz, count, bytes a second
L2_HOLDS = 50 << 20  # bytes
LANES = {"fp32": 128, "imad": 64, "fp64": 64, "select": 64, "integer": 64, "special": 16, "shuffle": 32}  # a clock
ISSUED, SHARED_BYTES = 4, 128  # instructions of a warp, bytes, a clock
PRODUCTS = {"HGMMA.BF16": 2048, "HGMMA.F16": 2048, "HGMMA.TF32": 1024, "HMMA.BF16": 1024, "HMMA.TF32": 512}
PRODUCTS |= {"HMMA.F16": 1024, "DMMA.F64": 64}  # multiply-adds a clock; those of a warp reach about half
LAUNCH = 2.0e-6  # from one launch of a CUDA graph to what the next one does first
HELD = {"registers": 65536, "shared": 228 << 10, "warps": 64}  # by a processor
LOOPS = {
    "pair_sums_kernel": ("tiles", "chunks"),
    "pair_gradient_kernel": ("tiles", "chunks"),
    "forward_kernel": ("turns", "TILES"),
}
AT_ONCE = ("scale_kernel",)  # they read the gradient of 1 that loss.backward() gives, and return
BUDGET = ("registers", "spilled", "shared", "instructions")


class Launch(NamedTuple):
    """What a call launches: a kernel with its arguments, or (no ``compiled``) an operation of torch."""

    name: str
    programs: int
    arguments: dict[str, Any]
    compiled: Any = None


# Enough of a GPU for Triton's binder and compiler.
_DRIVER = mock.Mock(
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 0,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
)


@contextmanager
def recorded(names: Collection[str]) -> Iterator[list[Launch]]:
    """The launches of the calls inside, none of which runs; with ``names`` of kernels, these alone are compiled."""
    launches: list[Launch] = []
    run = JITFunction.run

    def kept(kernel: Any, *given: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = None
        if not names or kernel.fn.__name__ in names:
            compiled = run(kernel, *given, grid=grid, warmup=True, **options)
        arguments = dict(zip(kernel.arg_names, given, strict=False)) | options
        launches.append(Launch(kernel.fn.__name__, grid[0], arguments, compiled))
        return compiled

    def product(matrix: torch.Tensor, z: torch.Tensor, out: torch.Tensor) -> None:
        ieee = matrix.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
        kind = "FFMA" if ieee else "HGMMA.TF32" if matrix.dtype == torch.float32 else "HGMMA.BF16"
        launches.append(Launch("matrix product", 1, {"matrix": matrix, "z": z, "out": out, "kind": kind}))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "_active", _DRIVER))
        stack.enter_context(mock.patch.object(JITFunction, "run", kept))
        stack.enter_context(mock.patch.object(source_gradient, "_product", product))
        stack.enter_context(mock.patch.object(focal_call, "processors", return_value=PROCESSORS))
        of = configuration.Chip(PROCESSORS, L2_HOLDS)
        stack.enter_context(mock.patch.object(divergence, "chip", return_value=of))
        yield launches


def launches_of(cell: Cell, names: Collection[str] = ()) -> list[Launch]:
    """Forward and backward; with ``names`` of kernels, these alone are compiled."""
    rows, dtype = cell.sizes["rows"], cell.torch_dtype
    one = torch.empty((), device="meta")
    with recorded(names) as launches, precision("high" if cell.formula.endswith("tf32") else "highest"):
        if cell.subject == "kd_divergence":
            student, teacher = (torch.empty(rows, cell.sizes["classes"], dtype=dtype, device="meta") for _ in range(2))
            of_rows = KDDivergenceOptions(temperature=2.0)
            gradient = divergence.forward(student, teacher, None, None, None, of_rows, GRADIENT)[2]
            divergence.scale(gradient, one, None, of_rows.ignore_index)
        else:
            x = torch.empty(rows, cell.sizes["width"], dtype=dtype, device="meta")
            labels = torch.empty(rows, dtype=torch.int64, device="meta")
            of_pairs, alone = FocalContrastiveOptions(), (None, None, None)
            _, *made = focal.forward(x, labels, *alone, None, None, of_pairs)
            divisor, z, norms, stats, index = made
            kept = (divisor, z, norms, stats, index)
            focal.backward(one, *kept, x, *alone, of_pairs, (True, False, False, False), all_anchors=False)
    return launches


def memory_traffic(launch: Launch) -> float:
    """Bytes from and to HBM: each tensor once, and what a second sweep over wide rows no longer finds in L2.

    It goes back from where the first ended, while every program is in a row of its own: of these rows L2 holds the part
    read last, as much as it has room for.
    """
    if launch.name in AT_ONCE:
        return 0.0
    tensors = {id(x): x for x in launch.arguments.values() if isinstance(x, torch.Tensor)}
    moved = float(sum(x.numel() * x.itemsize for x in tensors.values()))
    if launch.arguments.get("student_grad_ptr") is not None and launch.arguments["LANES"] > 1:
        pairs = [launch.arguments[name] for name in ("student_ptr", "teacher_ptr")]
        row = sum(x.shape[-1] * x.itemsize for x in pairs)
        missed = max(0.0, 1 - L2_HOLDS / (launch.programs * row))
        moved += missed * sum(x.numel() * x.itemsize for x in pairs)
    return moved


def apart(arguments: dict[str, Any]) -> float:
    """Share of the tiles of pairs of rows sorted by label that hold no two equal labels: the bench's six classes."""
    if not arguments.get("SORTED") or "BLOCK_M" not in arguments:
        return 0.0
    return share_apart(arguments["column_total"], arguments["BLOCK_N"], arguments["BLOCK_M"])


def kernel_row(launch: Launch) -> dict[str, Any]:
    """A launch's counts and its predicted microseconds."""
    kernel = next(iter(sass.kernels(launch.compiled.asm["cubin"]).values()))
    metadata = launch.compiled.metadata
    warps, shared = metadata.num_warps, max(metadata.shared, kernel.shared)
    resident = min(
        HELD["registers"] // (32 * warps * ((kernel.registers + 7) // 8 * 8)),
        HELD["shared"] // (shared + 1024),
        HELD["warps"] // warps,
    )
    turns = -(-launch.arguments.get("blocks", 0) // launch.programs)  # of a program
    lengths = [int((launch.arguments | {"turns": turns})[name]) for name in LOOPS.get(launch.name, ())]
    bodies: list[tuple[sass.Body, float]] = [(kernel.outside, 1)]
    share = apart(launch.arguments)
    for body, short in zip(kernel.loops, kernel.shortest, strict=True):
        repeats = math.prod(lengths[: body.depth])
        if share and body.counts != short.counts:
            bodies += [(body, repeats * (1 - share)), (short, repeats * share)]
        else:
            bodies.append((body, repeats))
    deep = -(-launch.programs // PROCESSORS)  # programs of the busiest processor
    microseconds: dict[str, float] = dict.fromkeys(("tensor", "shared", "issue", *LANES), 0.0)
    beside = dict.fromkeys(microseconds, 0.0)  # a product that runs by itself
    factors = 0.0
    moved, deepest = 0.0, max(body.depth for body, _ in bodies)  # its last iterations do without
    for body, times in bodies:
        of_warps = 1e6 / CLOCK * times * warps * deep
        microseconds["tensor"] += of_warps * sum(size / PRODUCTS[kind] for kind, size in body.products.items())
        microseconds["shared"] += of_warps * body.shared / SHARED_BYTES
        factors += of_warps * body.factors / SHARED_BYTES
        for total, counts in ((microseconds, body.counts), (beside, body.beside)):
            total["issue"] += of_warps * sum(counts.values()) / ISSUED
            for unit, lanes in LANES.items():
                total[unit] += of_warps * counts[unit] * 32 / lanes
        ahead = launch.name in LOOPS and body.depth < deepest  # what a loop fetches before its first iteration
        moved += times * warps * launch.programs * (body.stored + (0 if ahead else body.loaded))
    for total in (microseconds, beside):
        total["select + integer"] = total.pop("select") + total.pop("integer")
        total["fp32"] += total.pop("imad")
    others = [unit for unit in microseconds if unit != "tensor"]
    rest, hidden = (max(total[unit] for unit in others) for total in (microseconds, beside))
    product = microseconds["tensor"]
    overlaps = product == 0 or (resident >= 2 and deep >= 2)
    busy = max(product, rest) if overlaps else max(product, hidden) + rest - hidden
    bound = max(others, key=lambda unit: microseconds[unit])
    bound = f"tensor, then {bound}" if not overlaps else "tensor" if product > rest else bound
    microseconds["shared"] += factors
    microseconds["L2"] = 1e6 * moved / L2
    microseconds["HBM"] = 1e6 * memory_traffic(launch) / HBM
    for unit in ("shared", "L2", "HBM"):
        if microseconds[unit] > busy:
            busy, bound = microseconds[unit], unit
    return {
        "kernel": launch.name,
        "predicted_us": busy,
        "bound": bound,
        "overlaps": overlaps,
        "beside_products_us": round(hidden, 2),
        "programs": launch.programs,
        "programs_a_processor": resident,
        "loops": lengths,
        "microseconds": {unit: round(time, 2) for unit, time in microseconds.items() if time >= 0.005},
        "registers": kernel.registers,
        "spilled": kernel.spilled,
        "shared": shared,
        "warps": warps,
        "apart": round(share, 3),
        "instructions": [sum(body.counts.values()) for body, _ in bodies],  # outside of loops, in each, by path
        "counts": [dict(body.counts) for body, _ in bodies],
    }


def product_row(launch: Launch) -> dict[str, Any]:
    """The vendor's product, at four fifths of its unit's rate, which a large one reaches."""
    matrix, z, out, kind = launch.arguments.values()
    rate = 0.8 * PRODUCTS.get(kind, LANES["fp32"]) * PROCESSORS * CLOCK
    times = {
        "tensor" if kind in PRODUCTS else "fp32": 1e6 * matrix.numel() * z.shape[-1] / rate,
        "HBM": 1e6 * sum(x.numel() * x.itemsize for x in (matrix, z, out)) / HBM,
    }
    bound = max(times, key=lambda unit: times[unit])
    return {"kernel": launch.name, "predicted_us": times[bound], "bound": bound, "microseconds": times}


def predicted(cell: Cell) -> dict[str, Any]:
    """A cell's launches, the same ones together, and its milliseconds from a CUDA graph."""
    rows: dict[str, dict[str, Any]] = {}
    for launch in launches_of(cell):
        row = product_row(launch) if launch.compiled is None else kernel_row(launch)
        key = json.dumps(row, default=str)
        rows.setdefault(key, row | {"launches": 0})["launches"] += 1
    count = sum(row["launches"] for row in rows.values())
    busy = sum(row["predicted_us"] * row["launches"] for row in rows.values())
    return {"predicted_ms": (busy + 1e6 * LAUNCH * count) / 1e3, "launches": count, "kernels": list(rows.values())}


def tf32(cell: Cell) -> Cell:
    """The same where float32 products were allowed that."""
    return Cell(cell.subject, cell.sizes, cell.dtype, f"{cell.formula}, tf32")


CELLS = [*GOALS, *(tf32(cell) for cell in GOALS if cell.subject == "focal_contrastive" and cell.dtype == "float32")]


def table(cells: dict[str, Any]) -> str:
    """A line for each cell, and two for each of its longest kernels."""
    lines = ["predicted, not measured: forward and backward on an H100, from a CUDA graph"]
    for title, cell in cells.items():
        lines.append(f"{title:60} {cell['predicted_ms']:9.3f} ms predicted, {cell['launches']} launches")
        for row in sorted(cell["kernels"], key=lambda row: -row["predicted_us"] * row["launches"])[:4]:
            times = "  ".join(f"{unit} {time:.0f}" for unit, time in row["microseconds"].items() if time >= 0.5)
            held = f"{row['registers']} registers, {row['shared'] >> 10} KB" if "registers" in row else ""
            lines.append(f"    {row['launches']:3} x {row['predicted_us']:9.1f} us {row['kernel']:22} {row['bound']}")
            lines.append(f"            {held}: {row.get('instructions', [])}; {times}")
    return "\n".join(lines)


def main() -> None:
    """Predict, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    chosen = [cell for cell in CELLS if all(word in cell.title for word in options.words)]
    cells = {cell.title: predicted(cell) for cell in chosen}
    print(table(cells))
    if options.write:
        known = json.loads(PREDICTED.read_text())["cells"] if PREDICTED.exists() else {}
        note = "predicted from machine code by python -m benchmarks.predict --write; nothing here was measured"
        write(PREDICTED, {"note": note, "backend": "triton", "cells": known | cells})


if __name__ == "__main__":
    main()

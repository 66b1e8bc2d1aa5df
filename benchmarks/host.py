"""What a small call costs the host in eager mode on the Triton backend, with a driver that does nothing: no GPU needed.

    python -m benchmarks.host [--write] [--seconds S]

The public function and its backward pass, from Python to the last launch. Tensors are the CPU's, with an allocator
that keeps its memory, as that of a GPU does; the vendor's product is left out, and a real launch takes the
driver 2 to 3 microseconds more. Times of the process alone, so that other processes matter less.
"""

import argparse
import ctypes
import time
from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor

import merc_kernels
from benchmarks.cell import Call, Cell
from benchmarks.goals import divergence, focal
from benchmarks.idle_driver import idle_driver
from benchmarks.results_file import RESULTS, environment, write
from benchmarks.timing import interleaved, quantiles
from merc_kernels._shared import backends
from merc_kernels.focal_contrastive.triton import source_gradient

HOST = RESULTS / "triton-host.json"
CELLS = (focal(1024, 256, "float32"), focal(1024, 256, "bfloat16"), divergence(4096, 7, "float32"))


def call_of(cell: Cell) -> Call:
    """Forward and backward through the public function."""
    rows, dtype = cell.sizes["rows"], cell.torch_dtype

    def both(loss: Tensor, of: Tensor) -> None:
        torch.autograd.grad(loss, of)

    if cell.subject == "kd_divergence":
        student, teacher = (torch.randn(rows, cell.sizes["classes"], dtype=dtype) for _ in range(2))
        student.requires_grad_()
        return lambda: both(merc_kernels.kd_divergence(student, teacher, temperature=2.0, backend="triton"), student)
    x = torch.randn(rows, cell.sizes["width"], dtype=dtype, requires_grad=True)
    labels = torch.randint(6, (rows,))
    return lambda: both(merc_kernels.focal_contrastive_loss(x, labels, backend="triton"), x)


def keep_memory() -> None:
    """What is freed stays with the process: glibc would map and unmap every large tensor."""
    libc = ctypes.CDLL(None)
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(parameter, 1 << 30)


def _yes() -> bool:  # a Mock would take longer than what is measured
    return True


def _nothing(matrix: Tensor, z: Tensor, out: Tensor) -> None:
    return None


def measured(seconds: float) -> dict[str, dict[str, float | int]]:
    """Microseconds and launches of each cell."""
    with ExitStack() as stack:
        launches = stack.enter_context(idle_driver())
        stack.enter_context(mock.patch.object(backends, "_interpreted", _yes))  # takes tensors of the CPU
        stack.enter_context(mock.patch.object(source_gradient, "_product", _nothing))
        calls = {cell.title: call_of(cell) for cell in CELLS}
        counts = {}
        for title, call in calls.items():
            before = launches()
            call()
            counts[title] = launches() - before
        times = interleaved(calls, seconds, "cpu", time.process_time)
    rows = {}
    for title, samples in times.items():
        if isinstance(samples, Exception):
            raise samples
        numbers = {name.replace("_ms", "_us"): value for name, value in quantiles(samples).items()}
        scaled = {name: value * 1e3 if name.endswith("_us") else value for name, value in numbers.items()}
        rows[title] = {"launches": counts[title], **scaled}
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0, help="what a cell may take (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    rows = measured(options.seconds)
    for title, row in rows.items():
        spread = f"{row['p20_us']:.0f}-{row['p80_us']:.0f}"
        print(f"{title:60} {row['median_us']:5.0f} us ({spread}) of host time, {row['launches']} launches")
    if options.write:
        write(HOST, {"backend": "triton", "cells": rows, "environment": environment()})


if __name__ == "__main__":
    main()

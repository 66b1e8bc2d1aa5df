"""A subject of a few numbers, and providers that are right, wrong, slow to exist, or greedy."""

import os
import signal

import torch

from benchmarks.cell import Cell, Floor, Problem, Provider


def right(x, formula):
    return (x.double() ** 2).sum()


def wrong(x, formula):
    return 1.01 * (x.double() ** 2).sum()


def nothing_but_nan(x, formula):
    return right(x, formula) * torch.nan


def raises(x, formula):
    raise RuntimeError("no such kernel")


def greedy(x, formula):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def dies(*arguments):
    """In place of what answers in the process that weighs."""
    os.kill(os.getpid(), signal.SIGSEGV)


class Squares:
    name = "squares"
    floor_is = "nothing"
    limit = {"float32": 1e-4}  # noqa: RUF012  as a protocol's attribute

    def __init__(self, *providers: Provider) -> None:
        self._providers = list(providers)

    def cells(self, scale, device):
        return [Cell(self.name, {"rows": rows, "width": 4}) for rows in (8, 16)]

    def providers(self, device):
        return self._providers

    def work(self, cell):
        return float(cell.sizes["rows"] ** 2)

    def problem(self, cell, provider, device, rows=None):
        return Problem(provider, "", torch.ones(cell.sizes["rows"], 4, requires_grad=True), ())

    def truth(self, cell, device):
        x = torch.ones(cell.sizes["rows"], 4, dtype=torch.float64)
        return float((x**2).sum()), 2 * x, cell.sizes["rows"]

    def floor(self, cell, device):
        return Floor(lambda: sum(range(100)), {"both": 1.0})

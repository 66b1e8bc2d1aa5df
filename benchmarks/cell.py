"""What is measured: cells, the providers that are measured side by side in each, and one provider's calls."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Call = Callable[[], Any]


@dataclass(frozen=True)
class Cell:
    """One size of one subject."""

    subject: str
    sizes: Mapping[str, int]  # "rows" with "width" or "classes"
    dtype: str = "float32"
    formula: str = ""  # which loss, where a subject has several
    passes: tuple[str, ...] = ("both",)  # of forward, backward, both, and graph: both, replayed as a CUDA graph
    providers: tuple[str, ...] | None = None  # names, "fused" for all that are; None: all that know the formula
    seconds: float = 1.0  # that timing one provider's pass may take

    @property
    def title(self) -> str:
        """The cell in one line."""
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return " ".join(part for part in (self.subject, self.formula, sizes, self.dtype) if part)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The tensors' type."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass(frozen=True)
class Provider:
    """One way to compute a loss."""

    name: str
    loss: Callable[..., Any] | None = None  # the subject's inputs and the formula → scalar; None where it is absent
    absent: str = ""  # why
    formulas: tuple[str, ...] = ("",)  # that it computes
    fused: bool = False  # a backend of ours other than the reference
    square: bool = False  # its memory grows with N², rather than with the size of the inputs
    precision: str = "highest"  # of float32 matrix products (`torch.set_float32_matmul_precision`)

    def takes(self, cell: Cell) -> bool:
        """Whether it is measured in this cell."""
        fits = cell.formula in self.formulas and (cell.dtype == "float32" or self.precision == "highest")
        named = cell.providers is None or self.name in cell.providers or (self.fused and "fused" in cell.providers)
        return fits and named


@contextmanager
def precision(of_products: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` for a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(of_products)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Floor:
    """The least time of a cell's passes, from a call that is timed beside the providers.

    Attributes:
        shares: pass → floor, in calls; a pass that is not named has none.
    """

    call: Call
    shares: Mapping[str, float]


class Problem:
    """One provider's calls on the inputs of one cell.

    Args:
        provider: whose.
        formula: the cell's.
        x: the tensor whose gradient is wanted.
        others: the loss's other arguments.
    """

    def __init__(self, provider: Provider, formula: str, x: Tensor, others: tuple[Any, ...]) -> None:
        self.provider, self.formula, self.x, self.others = provider, formula, x, others

    def forward(self) -> Tensor:
        """The value, with its graph."""
        assert self.provider.loss is not None
        value: Tensor = self.provider.loss(self.x, *self.others, self.formula)
        return value

    def both(self) -> Tensor:
        """The gradient."""
        return torch.autograd.grad(self.forward(), self.x)[0]

    def call(self, name: str) -> Call:
        """What is timed for a pass."""
        settings = self.provider.precision
        with precision(settings):
            made = self._call(name)
        if settings == "highest":  # torch's default
            return made

        def with_its_precision() -> object:
            with precision(settings):
                return made()

        return with_its_precision

    def result(self) -> tuple[float, Tensor]:
        """Value and gradient."""
        with precision(self.provider.precision):
            value = self.forward()
            return float(value.detach()), torch.autograd.grad(value, self.x)[0]

    def _call(self, name: str) -> Call:
        if name == "backward":
            value = self.forward()
            return lambda: torch.autograd.grad(value, self.x, retain_graph=True)
        if name != "graph":
            call: Call = getattr(self, name)
            return call
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.both()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = self.both()

        def replay() -> Tensor:
            graph.replay()
            return kept

        return replay


class Subject(Protocol):
    """What the harness asks of a file of its own: focal_contrastive, kd_divergence, training_step, epoch."""

    name: str
    floor_is: str  # in words, for the reader of a table
    limit: Mapping[str, float]  # dtype → largest relative error of a right result

    def cells(self, scale: str, device: str) -> list[Cell]:
        """What is measured: ``scale`` is quick or full."""

    def providers(self, device: str) -> list[Provider]:
        """The absent ones too."""

    def work(self, cell: Cell) -> float:
        """What time grows with."""

    def problem(self, cell: Cell, provider: Provider, device: str, rows: int | None = None) -> Problem:
        """The calls, on the first ``rows`` rows where given."""

    def truth(self, cell: Cell, device: str) -> tuple[float, Tensor | None, int]:
        """Value and gradient in float64, and of how many rows of the cell."""

    def floor(self, cell: Cell, device: str) -> Floor:
        """What no provider is expected to beat."""

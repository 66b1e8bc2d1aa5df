"""How cost grows: the prediction that keeps a cell within its budget, and the exponents that are reported."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cell import Cell, Provider

FEWEST_ROWS = 2048  # from which on an exponent is fitted: below, fixed costs show


@dataclass(frozen=True)
class Prediction:
    """Of one call of ``both``."""

    seconds: float
    extra_bytes: float | None


class Predictor:
    """Predicts a cell from the provider's largest measured one: time grows with the work, memory with N² or N·D."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], tuple[Cell, float, Prediction]] = {}

    def learn(self, provider: Provider, cell: Cell, work: float, measured: Prediction) -> None:
        """Take a measured cell in."""
        key = (provider.name, cell.formula, cell.dtype)
        if key not in self._known or self._known[key][1] <= work:
            self._known[key] = cell, work, measured

    def predict(self, provider: Provider, cell: Cell, work: float) -> Prediction | None:
        """None where nothing alike was measured; another type stands in for one that was not."""
        name = (provider.name, cell.formula)
        alike = [known for key, known in self._known.items() if key[:2] == name]
        known = self._known.get((*name, cell.dtype)) or max(alike, key=lambda known: known[1], default=None)
        if known is None:
            return None
        then, work_then, cost = known
        ratio = _elements(cell.sizes) / _elements(then.sizes)
        growth = (cell.sizes["rows"] / then.sizes["rows"]) ** 2 if provider.square else ratio
        extra = None if cost.extra_bytes is None else cost.extra_bytes * growth
        return Prediction(cost.seconds * work / work_then, extra)


def _elements(sizes: Mapping[str, int]) -> float:
    return float(math.prod(sizes.values()))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The slope of log cost over log size, by least squares; None with fewer than two sizes."""
    points = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if cost > 0]
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def exponents(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of time and memory in N, for each provider, formula, type and width with two sizes or more."""
    series: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok" and row["pass"] == "both" and row["sizes"]["rows"] >= FEWEST_ROWS:
            width = next((size for name, size in row["sizes"].items() if name != "rows"), 0)
            series.setdefault((row["provider"], row["formula"], row["dtype"], width), []).append(row)
    fitted = []
    for key, members in series.items():
        sizes = [row["sizes"]["rows"] for row in members]
        time = exponent(sizes, [row["median_ms"] for row in members])
        memory = exponent(sizes, [row.get("peak_extra_bytes") or 0 for row in members])
        if time is not None:
            fit = dict(zip(("provider", "formula", "dtype", "width"), key, strict=True))
            fitted.append(fit | {"rows": sorted(set(sizes)), "time": time, "memory": memory})
    return fitted

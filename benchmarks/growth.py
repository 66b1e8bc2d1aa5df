"""How cost grows: the prediction that keeps a cell within its budget, and the exponents that are reported."""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class _Known:
    cell: Cell
    work: float
    seconds: float
    extra_bytes: int | None


class Predictor:
    """Predicts a cell from the provider's largest measured one: time grows with the work, memory with N² or N·D."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], _Known] = {}

    def learn(self, provider: Provider, cell: Cell, work: float, seconds: float, extra_bytes: int | None) -> None:
        """Take a measured cell in."""
        key = (provider.name, cell.formula, cell.dtype)
        if key not in self._known or self._known[key].work <= work:
            self._known[key] = _Known(cell, work, seconds, extra_bytes)

    def predict(self, provider: Provider, cell: Cell, work: float) -> Prediction | None:
        """None where nothing alike was measured."""
        alike = (
            known
            for (name, formula, _), known in self._known.items()
            if (name, formula) == (provider.name, cell.formula)
        )
        same = self._known.get((provider.name, cell.formula, cell.dtype))
        known = same or max(alike, key=lambda known: known.work, default=None)
        if known is None:
            return None
        then, now = known.cell.sizes, cell.sizes
        growth = (now["rows"] / then["rows"]) ** 2 if provider.square else _elements(now) / _elements(then)
        extra = None if known.extra_bytes is None else known.extra_bytes * growth
        return Prediction(known.seconds * work / known.work, extra)


def _elements(sizes: Mapping[str, int]) -> float:
    return float(math.prod(sizes.values()))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The slope of log cost over log size, by least squares; None with fewer than two sizes."""
    points = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if cost > 0]
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def exponents(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of time and memory in N, for each provider, formula, type and width with two sizes or more."""
    series: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok" and row["pass"] == "both" and row["sizes"]["rows"] >= FEWEST_ROWS:
            width = next((size for name, size in row["sizes"].items() if name != "rows"), 0)
            series.setdefault((row["provider"], row["formula"], row["dtype"], width), []).append(row)
    fitted = []
    for (provider, formula, dtype, width), members in series.items():
        sizes = [row["sizes"]["rows"] for row in members]
        time = exponent(sizes, [row["median_ms"] for row in members])
        if time is None:
            continue
        kept = [(row["sizes"]["rows"], row["peak_extra_bytes"]) for row in members if row.get("peak_extra_bytes")]
        memory = exponent([size for size, _ in kept], [extra for _, extra in kept])
        fit = {"provider": provider, "formula": formula, "dtype": dtype, "width": width, "rows": sorted(set(sizes))}
        fitted.append(fit | {"time": time, "memory": memory})
    return fitted

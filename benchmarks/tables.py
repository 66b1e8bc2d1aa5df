"""Markdown tables out of result files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.results_file import Result, Run, run_of, select

Row = dict[str, Any]
PEERS = ("eager", "torch.compile", "chunked", "loop over anchors", "pytorch-metric-learning", "lightly", "liger-kernel")
NONE = "–"
NO_GPU = "No GPU has been measured yet: `make gpu` does it, on a machine that has one ([how](docs/benchmarks.md))."
NO_CPU = "No CPU result is committed yet: `make bench` makes it ([how](docs/benchmarks.md))."


def number(value: float) -> str:
    """Three figures, or all of an integer's."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e3)} ms"


def mebibytes(value: float | None) -> str:
    """MiB, or GiB where it is many."""
    if value is None:
        return NONE
    mib = value / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1000 else f"{mib:.1f} MiB"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [list(head), ["---"] * len(head), *map(list, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def median(row: Row | None, spread: bool = False) -> str:
    """A measurement, or in a word why there is none."""
    if row is None:
        return NONE
    if row["status"] == "ok":
        text = number(row["median_ms"])
        return f"{text} ({number(row['p20_ms'])}–{number(row['p80_ms'])})" if spread else text
    if row["status"] == "skipped":
        prediction = row.get("prediction") or {}
        seconds, extra = prediction.get("seconds"), prediction.get("extra_bytes")
        expected = [] if seconds is None else [duration(seconds)]
        expected += [] if extra is None else [mebibytes(extra)]
        return f"skipped (≈ {', '.join(expected)})" if expected else "skipped"
    return str(row["status"])


def machine(run: Run, kind: str) -> str:
    """Device and versions of a run."""
    where = run["environment"]
    device = where["gpu"] if kind == "cuda" else f"{where['threads']} cores of {where['cpu'].strip()}"
    return f"{device}, PyTorch {where['torch']}, commit {where['commit'][:10]}{'+' * where['commit'].endswith('+')}"


def summary(result: Result) -> str:
    """The README's table of one device: both operators, forward and backward."""
    lines, runs = [], []
    for subject, formula in (("focal_contrastive", "focal"), ("kd_divergence", "")):
        run = run_of(result, subject)
        if run is None:
            continue
        runs.append(run)
        for sizes, dtype in _cells(select(run, formula=formula, pass_="both")):
            found = {r["provider"]: r for r in select(run, formula=formula, pass_="both", sizes=sizes, dtype=dtype)}
            ours = found.get("merc")
            if ours is None or ours["status"] != "ok" or sizes.get("width", 256) != 256:
                continue
            best = _best(found) or ours
            share = best["share_of_floor"]
            lines.append(
                [
                    f"`{subject}`",
                    _size(sizes) + ("" if dtype == "float32" else f", {dtype}"),
                    median(ours),
                    f"{best['provider'].removeprefix('merc:')}, {number(best['median_ms'])}",
                    *(median(found.get(name)) for name in PEERS[:4]),
                    NONE if share is None else f"{share:.0%}",
                    f"{best['passes']:.2f}" if "passes" in best else NONE,
                    mebibytes(best.get("peak_extra_bytes")),
                    mebibytes(found.get("eager", {}).get("peak_extra_bytes")),
                ]
            )
    head = ["", "size", "ours", "our fastest backend", *PEERS[:4], "share of the floor", "passes"]
    head += ["extra memory: ours", "eager"]
    if not runs:
        return ""
    text = f"Forward and backward, medians in milliseconds on {machine(runs[0], result['kind'])}"
    command = runs[0]["environment"]["command"]
    file = f"[`{result['file']}`](benchmarks/results/{result['file']})"
    return f"{text} (`{command}`, {file}):\n\n{table(head, lines)}"


def _best(found: dict[str, Row]) -> Row | None:
    ours = [row for name, row in found.items() if name.startswith("merc:") and row["status"] == "ok"]
    return min(ours, key=lambda row: float(row["median_ms"]), default=None)


def _cells(rows: Iterable[Row]) -> list[tuple[dict[str, int], str]]:
    """Sizes and type of each cell, in the order of the run."""
    cells: list[tuple[dict[str, int], str]] = []
    for row in rows:
        if (row["sizes"], row["dtype"]) not in cells:
            cells.append((row["sizes"], row["dtype"]))
    return cells


def _size(sizes: dict[str, int]) -> str:
    letters = {"rows": "N", "width": "D", "classes": "C"}
    return ", ".join(f"{letters[name]} {size}" for name, size in sizes.items())


def subject_tables(run: Run, kind: str) -> str:
    """Everything of one subject: times, memory, errors, exponents, and what is absent."""
    text = [
        f"#### {run['subject']}",
        f"{machine(run, kind)}; `{run['environment']['command']}`. The floor: {run['floor']}.",
    ]
    names = list(dict.fromkeys(row["provider"] for row in run["rows"]))
    for title, show, passes in (
        ("Milliseconds, median (20–80 %), and share of the floor", _time, None),
        ("Peak memory beyond inputs and the returned gradient", _memory, "both"),
        ("Relative error against float64, the larger of value's and gradient's", _error, "both"),
    ):
        lines = []
        for key in dict.fromkeys(_key(row) for row in run["rows"] if passes in (None, row["pass"])):
            found = {row["provider"]: row for row in run["rows"] if _key(row) == key}
            first = next(iter(found.values()))
            head = [_size(first["sizes"]), first["dtype"], first["formula"] or NONE, first["pass"]]
            lines.append([*head, *(show(found.get(name)) for name in names)])
        text += [f"{title}:", table(["size", "type", "formula", "pass", *names], lines)]
    if run["growth"]:
        lines = [
            [
                fit["provider"],
                fit["formula"] or NONE,
                fit["dtype"],
                str(fit["width"]),
                f"{fit['rows'][0]}–{fit['rows'][-1]}",
                f"{fit['time']:.2f}",
                NONE if fit["memory"] is None else f"{fit['memory']:.2f}",
            ]
            for fit in run["growth"]
        ]
        text.append("Cost grows with N to the power of:")
        text.append(table(["provider", "formula", "type", "D or C", "N", "time", "memory"], lines))
    if run["absent"]:
        reasons = [f"- {name}: {reason}" for name, reason in run["absent"].items()]
        text.append("\n".join(["Absent:", "", *reasons]))
    return "\n\n".join(text)


def _key(row: Row) -> tuple[Any, ...]:
    return (tuple(row["sizes"].items()), row["dtype"], row["formula"], row["pass"])


def _time(row: Row | None) -> str:
    share = "" if row is None or not row.get("share_of_floor") else f", {row['share_of_floor']:.0%}"
    return median(row, spread=True) + share


def _memory(row: Row | None) -> str:
    if row is None or row["status"] not in ("ok", "out of memory"):
        return NONE
    return row["status"] if row["status"] != "ok" else mebibytes(row.get("peak_extra_bytes"))


def _error(row: Row | None) -> str:
    if row is None or row.get("error") is None:
        return NONE
    wrong = "**wrong:** " if row["status"] == "wrong" else ""
    return f"{wrong}{row['error']:.0e}"

"""The summary of a result file as a Markdown table."""

from typing import Any

from benchmarks.results_file import Result

Row = dict[str, Any]
NONE = "–"
LETTERS = {"rows": "N", "width": "D", "classes": "C"}
HEAD = ["loss and size", "ours, ms", "plain PyTorch, ms", "memory: ours", "memory: plain"]
HEAD += ["fastest other, ms", "share of the floor"]
BRIEF = 5  # columns of the README, which shows the main cells of the two losses alone
OPERATORS = {"focal_contrastive": "focal", "kd_divergence": ""}


def number(value: float) -> str:
    """Three figures, or all of an integer's."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def mebibytes(value: float | None) -> str:
    """MiB, or GiB where it is many."""
    if value is None:
        return NONE
    mib = value / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1000 else f"{mib:.1f} MiB"


def median(row: Row | None, spread: bool = False) -> str:
    """A measurement, or in a word why there is none."""
    if row is None:
        return NONE
    if row["status"] != "ok":
        return str(row["status"])
    text = number(row["median_ms"])
    return f"{text} ({number(row['p20_ms'])}–{number(row['p80_ms'])})" if spread else text


def machine(result: Result) -> str:
    """Device, versions and command of a result's last subject."""
    where = result["runs"][-1]["environment"]
    device = where["gpu"] if result["kind"] == "cuda" else f"{where['threads']} cores of {where['cpu'].strip()}"
    commit = f"{where['commit'][:10]}{'+' * where['commit'].endswith('+')}"
    return f"{device}, PyTorch {where['torch']}, commit {commit}, `{where['command']}`"


def summary(result: Result, brief: bool) -> str:
    """A line for each cell in which ours was measured, forward and backward; empty where there is none."""
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in (row for run in result["runs"] for row in run["rows"] if row["pass"] == "both"):
        key = (row["subject"], row["formula"], row["dtype"], *row["sizes"].items())
        cells.setdefault(key, {})[row["provider"]] = row
    shown = [(*key[:3], dict(key[3:]), found) for key, found in cells.items() if "merc" in found]
    lines = []
    for subject, formula, dtype, sizes, found in shown:
        main = OPERATORS.get(subject) == formula and sizes.get("width", 256) == 256
        if found["merc"]["status"] != "ok" or (brief and not main):
            continue
        title = ", ".join(f"{LETTERS[name]} {size}" for name, size in sizes.items())
        title += "".join(f", {part}" for part in (formula.removeprefix("focal"), dtype.removeprefix("float32")) if part)
        eager, share = found.get("eager"), found["merc"]["share_of_floor"]
        line = [f"`{subject}`, {title}", median(found["merc"], not brief), median(eager, not brief)]
        line += [mebibytes((row or {}).get("peak_extra_bytes")) for row in (found["merc"], eager)]
        line += [_fastest_other(found), NONE if share is None else f"{share:.0%}"]
        lines.append(line)
    columns = BRIEF if brief else len(HEAD)
    rows = [row[:columns] for row in (HEAD, ["---"] * len(HEAD), *lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if lines else ""


def _fastest_other(found: dict[str, Row]) -> str:
    others = [(name, row) for name, row in found.items() if not name.startswith("merc") and row["status"] == "ok"]
    others = [(name, row) for name, row in others if name.partition(",")[0] != "eager"]
    name, row = min(others, key=lambda other: float(other[1]["median_ms"]), default=(NONE, None))
    return NONE if row is None else f"{name}, {median(row)}"

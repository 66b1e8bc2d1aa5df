"""The figure of README and docs: time and memory of focal_contrastive over the number of rows."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.results_file import Result

SHOWN = ("merc", "eager", "torch.compile", "chunked", "loop over anchors")
Data = dict[str, Any]


def data(result: Result) -> Data | None:
    """What is drawn: provider → N, milliseconds, MiB; and the floor. None where the result has too little."""
    lines: Data = {}
    floor: dict[int, float] = {}
    runs = [run for run in result["runs"] if run["subject"] == "focal_contrastive"]
    for row in (row for run in runs for row in run["rows"]):
        measured = (row["formula"], row["dtype"], row["pass"], row["status"], row["sizes"]["width"])
        if measured != ("focal", "float32", "both", "ok", 256):
            continue
        rows = row["sizes"]["rows"]
        if row["floor_ms"] is not None:
            floor[rows] = row["floor_ms"]
        if row["provider"] in SHOWN:
            extra = row.get("peak_extra_bytes")
            point = [rows, row["median_ms"], None if not extra else extra / 2**20]
            lines.setdefault(row["provider"], []).append(point)
    if not lines:
        return None
    where = runs[0]["environment"]
    device = where["gpu"] if result["kind"] == "cuda" else f"{where['cpu'].strip()}, {where['threads']} threads"
    return {"device": device, "lines": lines, "floor": sorted(floor.items())}


def digest(shown: Data) -> str:
    """What the file says it was drawn from."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def drawn_from(path: Path) -> str | None:
    """The digest that a figure's file holds; None where there is no figure."""
    found = re.search(r"<!-- data ([0-9a-f]{16}) -->", path.read_text()) if path.exists() else None
    return found[1] if found else None


def draw(shown: Data, path: Path) -> None:
    """Write the figure as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "merc-kdc"
    from matplotlib import pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for name, points in sorted(shown["lines"].items(), key=lambda item: SHOWN.index(item[0])):
        label, width = ("ours", 2.6) if name == "merc" else (name, 1.4)
        style: Data = {"label": label, "linewidth": width, "markersize": 4}
        n, ms, mib = zip(*points, strict=True)
        time.plot(n, ms, "o-", **style)
        memory.plot(n, mib, "o-", **style)  # nothing where it is None
    floor = shown["floor"]
    time.plot([n for n, _ in floor], [ms for _, ms in floor], "k--", linewidth=1, label="floor")
    time.set_ylabel("forward and backward, ms")
    memory.set_ylabel("extra memory, MiB")
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel="rows N")
        axes.grid(visible=True, alpha=0.3)
    time.legend(frameon=False, fontsize="small")
    figure.suptitle(f"focal_contrastive, D = 256, float32, {shown['device']}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    path.write_text(path.read_text().rstrip() + f"\n<!-- data {digest(shown)} -->\n")

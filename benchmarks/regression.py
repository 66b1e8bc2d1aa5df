"""Compares results with the committed ones by ratio to a provider of the same run, never by absolute time.

    python -m benchmarks.regression FOLDER [--tolerance RATIO]

FOLDER holds new result files; a file is compared with the committed one of the same name. For each cell and pass that
both have, the median of each of our providers is divided by that of a peer of its own run, ``eager`` or ``chunked``; a
ratio that is larger than the committed one by more than the tolerance is reported, and the exit code is 1.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results_file import RESULTS, Result, load

TOLERANCE, QUICK_TOLERANCE = 1.25, 2.5  # the quick cells are few and short, on machines that others use too
PEERS = ("eager", "chunked")
Key = tuple[str, str, str]  # cell and pass, provider, and the peer that was measured beside it


def ratios(result: Result) -> dict[Key, float]:
    """Of each measurement of ours to the first peer of its cell."""
    cells: dict[str, dict[str, float]] = {}
    for row in (row for run in result["runs"] for row in run["rows"] if row["status"] == "ok"):
        sizes = [f"{name}={size}" for name, size in sorted(row["sizes"].items())]
        cell = " ".join(filter(None, [row["subject"], row["formula"], *sizes, row["dtype"], row["pass"]]))
        cells.setdefault(cell, {})[row["provider"]] = row["median_ms"]
    found: dict[Key, float] = {}
    for cell, medians in cells.items():
        peer = next((peer for peer in PEERS if peer in medians), None)
        if peer is not None:
            ours = {name: median for name, median in medians.items() if name.startswith("merc")}
            found |= {(cell, name, peer): median / medians[peer] for name, median in ours.items()}
    return found


def slower(new: Result, old: Result, tolerance: float) -> Iterator[str]:
    """A line for each ratio that grew by more than the tolerance."""
    before = ratios(old)
    for key, ratio in ratios(new).items():
        if ratio > tolerance * before.get(key, float("inf")):
            cell, provider, peer = key
            yield f"{provider}, {cell}: {ratio:.3g} of {peer}'s time, it was {before[key]:.3g}"


def report(new: list[Result], old: list[Result], tolerance: float | None = None) -> bool:
    """Print what got slower, or that nothing can be compared; whether anything did."""
    committed = {result["file"]: result for result in old}
    bad = False
    for result in new:
        if result["file"] not in committed:
            print(f"{result['file']}: no committed result of this device to compare with")
            continue
        limit = tolerance or (QUICK_TOLERANCE if result.get("scale") == "quick" else TOLERANCE)
        common = len(ratios(result).keys() & ratios(committed[result["file"]]).keys())
        lines = list(slower(result, committed[result["file"]], limit))
        print("\n".join([f"{result['file']}: {common} ratios compared, {len(lines)} slower by {limit:g}×", *lines]))
        bad = bad or bool(lines)
    return bad


def main() -> int:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--committed", type=Path, default=RESULTS)
    parser.add_argument("--tolerance", type=float, help=f"{TOLERANCE:g}, and {QUICK_TOLERANCE:g} of quick results")
    options = parser.parse_args()
    return int(report(load(options.folder), load(options.committed), options.tolerance))


if __name__ == "__main__":
    raise SystemExit(main())
